"""From cases to the batches of one fold."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from hnseg.card import InputSpec, Stage
from hnseg.data.augment import Compose, RandomNoise
from hnseg.data.datamodule import Loading, StageDataModule, choose_loading
from hnseg.data.prepare import prepare as prepare_all
from hnseg.data.prepare import prepare_case

STAGE = Stage("fine", (16, 16, 16), (4.0, 4.0, 4.0), "lesions")


@pytest.fixture
def build(cohort, tmp_path, monkeypatch):
    """Return a maker of set-up modules that train on two cases and validate on the third."""

    def prepare(cases, stage, cache, *, margin_mm, **_):
        return [prepare_case(case, stage, cache, margin_mm=margin_mm) for case in cases]

    monkeypatch.setattr("hnseg.data.datamodule.prepare", prepare)

    def build(**options) -> StageDataModule:
        usual = {"stage": STAGE, "spec": InputSpec(cte=True), "patch": (8, 8, 8), "batch_size": 2}
        module = StageDataModule(cohort[:2], cohort[2:], cache=tmp_path / "cache", **usual | options)
        module.prepare_data()
        module.setup("fit")
        return module

    return build


def test_batches_have_the_shapes_that_training_expects(build):
    module = build()
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 4, 8, 8, 8)
    assert batch["label"].shape == (2, 8, 8, 8)
    assert batch["label"].dtype == torch.uint8
    assert set(batch["case_id"]) == {"CHUM-001", "CHUM-002"}
    ((validation,),) = module.val_dataloader()
    assert validation["image"].shape == (1, 4, 16, 16, 16)
    assert validation["case_id"] == ["MDA-001"]


@pytest.mark.parametrize(
    ("samples", "batch_size", "batches"),
    [(None, 1, 2), (None, 2, 1), (None, 4, 1), (10, 2, 5), (9, 2, 5), (1, 4, 1)],
)
def test_an_epoch_is_whole_batches(build, samples, batch_size, batches):
    loader = build(samples=samples, batch_size=batch_size).train_dataloader()
    made = list(loader)
    assert len(loader) == len(made) == batches
    assert all(len(batch["case_id"]) == batch_size for batch in made)


def test_epochs_go_on_with_new_samples(build):
    loader = build(samples=4, augment=Compose({"noise": RandomNoise()})).train_dataloader()
    first = list(loader)
    loader.sampler.set_epoch(1)
    second = list(loader)
    loader.sampler.set_epoch(0)
    again = list(loader)
    assert torch.equal(first[0]["image"], again[0]["image"])
    assert not torch.equal(first[0]["image"], second[0]["image"])


def test_jitter_is_cut_out_of_the_margin_that_was_prepared_for_it(build):
    module = build(jitter_mm=8.0, patch=(16, 16, 16))
    assert module.train_set.jitter
    assert module.train_set.volumes[0].margin == (2, 2, 2)
    assert module.train_set[0]["image"].shape == (4, 16, 16, 16)
    assert module.validation_sets[0][0]["image"].shape == (4, 16, 16, 16)
    still = build(patch=(16, 16, 16))
    # Validation looks at the unshifted ROI, which is the one prepared without a margin.
    a, b = module.validation_sets[0][0], still.validation_sets[0][0]
    assert torch.equal(a["label"], b["label"])
    torch.testing.assert_close(a["image"], b["image"], atol=0.02, rtol=0)


def test_the_cache_is_filled_once_for_both_calls(cohort, tmp_path):
    options = {"stage": STAGE, "spec": InputSpec(), "patch": (8, 8, 8), "batch_size": 1}
    module = StageDataModule(cohort[:1], cohort[1:2], cache=tmp_path, prepare_workers=1, **options)
    module.prepare_data()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    module.setup("fit")
    assert len(made) == 2 * 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == made
    assert [v.case_id for v in prepare_all(cohort[:1], STAGE, tmp_path)] == ["CHUM-001"]


GIB = 2**30


@pytest.mark.parametrize(
    ("gpus", "cores", "shared", "processes", "workers"),
    [
        (1, 16, 512 * GIB, 1, 12),  # at most nnU-Net's number
        (1, 8, 512 * GIB, 1, 7),  # one core is left to the training
        (4, 32, 512 * GIB, 1, 7),  # four trainings side by side
        (1, 16, 64 * 2**20, 1, 0),  # a container's usual /dev/shm
        (1, 16, 12 * GIB, 1, 6),  # half of it holds 12 batches of 0.5 GiB: 6 processes with 2 each
        (4, 64, 48 * GIB, 4, 6),  # processes that train together share the memory
        (8, 8, 512 * GIB, 1, 0),
    ],
)
def test_each_gpu_gets_its_share(monkeypatch, gpus, cores, shared, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=shared))
    loading = choose_loading("auto", gpus=gpus, batch_bytes=GIB // 2, processes=processes)
    assert loading == Loading(workers, pin=True)


def test_on_the_processor_the_training_loads_by_itself_and_a_number_is_taken_as_it_is():
    assert choose_loading("auto", gpus=0, batch_bytes=GIB) == Loading(0, pin=False)
    assert choose_loading(3, gpus=0, batch_bytes=GIB) == Loading(3, pin=False)
    assert choose_loading(0, gpus=1, batch_bytes=GIB) == Loading(0, pin=True)
