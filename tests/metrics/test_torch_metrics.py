"""The torchmetrics give what the scores on arrays give, however the patients are dealt out to processes."""

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from hnseg.metrics.official import aggregate, count_case
from hnseg.metrics.torch_metrics import CaseMeans, OfficialScores

SPACINGS = [(0.9765625, 0.9765625, 3.27), (1.0, 1.0, 1.0), (1.17, 1.17, 2.0), (2.0, 2.0, 3.0)]
KEYS = ("gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg")


@pytest.fixture(scope="module")
def patients(random_pair):
    patients = [(*random_pair(seed), spacing) for seed, spacing in enumerate(SPACINGS)]
    without_gtvp = [np.where(labels == 1, 0, labels) for labels in patients[1][:2]]
    patients[1] = (*without_gtvp, SPACINGS[1])
    return patients


def update(metric, patients):
    for prediction, truth, spacing in patients:
        metric.update(torch.from_numpy(prediction), torch.from_numpy(truth), spacing)


def expected(patients):
    scores = aggregate([count_case(*patient) for patient in patients])
    return pytest.approx({key: scores[key] for key in KEYS}, rel=1e-12)


def values(metric):
    return {key: value.item() for key, value in metric.compute().items()}


def test_a_batch_equals_its_cases(patients):
    predictions, truths, spacings = (np.stack(column) for column in zip(*patients, strict=True))
    metric = OfficialScores()
    metric.update(torch.from_numpy(predictions).long(), torch.from_numpy(truths), torch.from_numpy(spacings))
    assert values(metric) == expected(patients)


def test_without_lesions_and_without_patients():
    metric = OfficialScores()
    assert values(metric) == pytest.approx(dict(zip(KEYS, (np.nan, 1, 1), strict=True)), nan_ok=True)
    empty = torch.zeros(2, 2, 2, dtype=torch.int64)
    metric.update(empty, empty, (1, 1, 1))
    assert values(metric) == dict.fromkeys(KEYS, 1)


def test_means_over_cases():
    means = CaseMeans(["dice", "loss"])
    for dice, loss in ((0.5, 3.0), (0.25, 1.0), (0.0, 2.0)):
        means.update({"loss": torch.tensor(loss), "dice": torch.tensor(dice)})
    assert means.compute() == {"dice": 0.25, "loss": 2.0}


@pytest.mark.parametrize("split", range(1, len(SPACINGS) + 1))
def test_ranks_merge_into_one_process(patients, split):
    ranks = [OfficialScores(), OfficialScores()]
    update(ranks[0], patients[:split])
    update(ranks[1], patients[split:])
    ranks[0].merge_state(ranks[1])
    assert values(ranks[0]) == expected(patients)


def _rank(rank, patients, store, results):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric, means = OfficialScores(), CaseMeans(["dice"])
    update(metric, patients[rank::2])
    for dice in torch.tensor([0.5, 0.25, 0.0])[rank::2]:  # unlike numbers of cases
        means.update({"dice": dice})
    results.put((values(metric), values(means)))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_both_report_the_whole_cohort(patients, tmp_path):
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_rank, (patients, tmp_path / "store", results), nprocs=2)
    assert [results.get(), results.get()] == [(expected(patients), {"dice": 0.25})] * 2
