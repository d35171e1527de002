"""The torchmetrics metric gives what the numpy scores give, however the patients are spread."""

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from hnseg.metrics import OfficialScores, aggregate, count_case

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


def expected(patients, empty="one"):
    scores = aggregate([count_case(*patient) for patient in patients], empty=empty)
    return pytest.approx({key: scores[key] for key in KEYS}, rel=1e-12)


def values(metric):
    return {key: value.item() for key, value in metric.compute().items()}


@pytest.mark.parametrize("empty", ["one", "zero", "skip"])
def test_equals_the_scores_on_arrays(patients, empty):
    metric = OfficialScores(empty=empty)
    update(metric, patients)
    assert values(metric) == expected(patients, empty)


def test_a_batch_equals_its_cases(patients):
    predictions, truths, spacings = (np.stack(column) for column in zip(*patients, strict=True))
    metric = OfficialScores()
    metric.update(torch.from_numpy(predictions).long(), torch.from_numpy(truths), torch.from_numpy(spacings))
    assert values(metric) == expected(patients)


@pytest.mark.parametrize("split", range(1, len(SPACINGS) + 1))
def test_ranks_merge_into_one_process(patients, split):
    ranks = [OfficialScores(), OfficialScores()]
    update(ranks[0], patients[:split])
    update(ranks[1], patients[split:])
    ranks[0].merge_state(ranks[1])
    assert values(ranks[0]) == expected(patients)


def test_reset_forgets(patients):
    metric = OfficialScores()
    update(metric, patients[:2])
    metric.reset()
    update(metric, patients[2:])
    assert values(metric) == expected(patients[2:])


def test_forward_scores_the_batch_and_keeps_the_sum(patients):
    metric = OfficialScores()
    for prediction, truth, spacing in patients:
        of_batch = metric(torch.from_numpy(prediction), torch.from_numpy(truth), spacing)
        assert {key: of_batch[key].item() for key in KEYS} == expected([(prediction, truth, spacing)])
    assert values(metric) == expected(patients)


def test_all_patients_skipped_is_nan():
    metric = OfficialScores(empty="skip")
    metric.update(torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(2, 2, 2, dtype=torch.int64), (1, 1, 1))
    assert values(metric) == pytest.approx(
        {"gtvp_dsc": float("nan"), "gtvn_dsc_agg": 1.0, "gtvn_f1_agg": 1.0}, nan_ok=True
    )


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(1, 2, 2, 2\)"):
        OfficialScores().update(torch.zeros(2, 2, 2), torch.zeros(1, 2, 2, 2), (1, 1, 1))


def _rank(rank, patients, store, results):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = OfficialScores()
    update(metric, patients[rank::2])
    results.put(values(metric))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_both_report_the_whole_cohort(patients, tmp_path):
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_rank, (patients, tmp_path / "store", results), nprocs=2)
    assert [results.get(), results.get()] == [expected(patients)] * 2
