"""Several cascades side by side make what one makes, and each takes its part of the list."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from deadly import failing
from fabricate import write_case
from results import contents, table

from hnseg.data.sampling import Sampling
from hnseg.errors import HnsegError
from hnseg.imaging.case import read_cases
from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.case_list import segment_cases
from hnseg.inference.local_engine import LocalEngine
from hnseg.inference.outcome import Outcome
from hnseg.inference.predictor import Predictor
from hnseg.inference.provenance import Provenance
from hnseg.inference.record import Record
from hnseg.inference.setup import Setup
from hnseg.inference.work import Made
from hnseg.models.bundle import Bundle

CPU = torch.device("cpu")
NAMES = [f"A-{seed}" for seed in range(8)]


@pytest.fixture
def setup(bundle: Bundle) -> Setup:
    return Setup(bundle.path, backend="torch", precision="float32")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_case(tmp_path / "scans", name, seed=seed)
    (tmp_path / "scans" / "A-2" / "A-2__PT.nii.gz").unlink()
    return tmp_path / "scans"


def segment(scans: Path, setup: Setup, out: Path, cascades: int) -> list[Outcome]:
    engine = LocalEngine(setup.load([CPU] * cascades))
    return segment_cases(read_cases(scans, strict=False), engine, out)


def test_two_cascades_at_once_leave_what_one_leaves(
    setup: Setup, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second run no cascade goes on with its first case before the other has one too."""
    segment(scans, setup, tmp_path / "one", 1)
    work, both, seen = Cascade.__call__, Barrier(2, timeout=300), dict[Cascade, list[str]]()

    def call(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> Segmentation:
        seen.setdefault(self, []).append(case_id)
        if len(seen[self]) == 1:
            both.wait()
        return work(self, ct, pet, case_id)

    monkeypatch.setattr(Cascade, "__call__", call)
    outcomes = segment(scans, setup, tmp_path / "two", 2)
    assert [outcome.case_id for outcome in outcomes] == NAMES
    assert [outcome.case_id for outcome in outcomes if outcome.status == "error"] == ["A-2"]
    assert len(seen) == 2
    assert sorted(chain(*seen.values())) == [name for name in NAMES if name != "A-2"]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert (tmp_path / "two" / "A-7.nii.gz").exists()


def test_one_case_is_resampled_while_another_has_the_networks(
    setup: Setup, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first case's network waits until the second is resampled, and no two ever run at once."""
    segment(scans, setup, tmp_path / "one", 1)
    resample, predict = Sampling.images, Predictor.__call__
    resampled, running, most = [], [], []

    def images(self: Sampling, *arguments: Any, **settings: Any) -> dict[str, np.ndarray]:
        sampled = resample(self, *arguments, **settings)
        resampled.append(sampled)
        return sampled

    def call(self: Predictor, network: Callable, image: torch.Tensor) -> torch.Tensor:
        running.append(image)
        most.append(len(running))
        while len(resampled) < 2:
            time.sleep(0.01)
        try:
            return predict(self, network, image)
        finally:
            running.pop()

    monkeypatch.setattr(Sampling, "images", images)
    monkeypatch.setattr(Predictor, "__call__", call)
    engine = LocalEngine(setup.load([CPU]), at_once=2)
    segment_cases(read_cases(scans, strict=False), engine, tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert most == [1] * 7


def test_a_case_that_memory_does_not_suffice_for_beside_others_is_tried_alone(
    setup: Setup, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(scans, setup, tmp_path / "one", 1)
    work, tried = Cascade.__call__, []

    def call(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> Segmentation:
        tried.append(case_id)
        if case_id == "A-4" and tried.count(case_id) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(self, ct, pet, case_id)

    monkeypatch.setattr(Cascade, "__call__", call)
    segment_cases(
        read_cases(scans, strict=False), LocalEngine(setup.load([CPU]), at_once=2), tmp_path / "two"
    )
    assert tried[-1] == "A-4"
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_defect_in_one_cascade_costs_its_case_alone(
    setup: Setup, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cascade, "__call__", failing("A-0", RuntimeError("the GPU has fallen off")))
    outcomes = {one.case_id: one for one in segment(scans, setup, tmp_path / "out", 2)}
    assert "the GPU has fallen off" in outcomes["A-0"].message
    assert [name for name, one in outcomes.items() if one.status != "ok"] == ["A-0", "A-2"]


def test_a_folder_that_cannot_be_written_ends_all_cascades(
    setup: Setup, scans: Path, tmp_path: Path, networks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cascade may be ahead by the case at hand and the one that was read meanwhile."""
    for seed in range(8, 24):
        write_case(scans, f"A-{seed:02}", seed=seed)

    def full(self: Record, made: Made) -> Outcome:
        raise HnsegError("out/cases.csv: cannot be written (No space left on device)")

    monkeypatch.setattr(Record, "take", full)
    with pytest.raises(HnsegError, match="No space left"):
        segment(scans, setup, tmp_path / "out", 2)
    assert len(networks) <= 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cases.csv"]
    assert table(tmp_path / "out") == {}


def test_devices_that_would_make_different_masks_are_refused(setup: Setup) -> None:
    (cascade,) = setup.load([CPU])
    (other,) = replace(setup, precision="bfloat16").load([CPU])
    with pytest.raises(HnsegError, match=r"differ in precision \(float32, bfloat16\)"):
        LocalEngine([cascade, other])
    assert LocalEngine([cascade, *setup.load([CPU])]).provenance == Provenance.of(cascade)
