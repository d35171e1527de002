"""A bundle that takes SUV above 4 for a tumour, three scans for it, and what its networks see."""

from pathlib import Path

import pytest
import SimpleITK as sitk
from fabricate import write_case
from members import HOT, WHOLE, card, make_bundle

from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.ensemble import LogitsCache
from hnseg.models.bundle import Bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "tumour", card("fine", "pointwise", HOT, grid=WHOLE))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate("ABC"):
        write_case(tmp_path / "scans", name, seed=seed)
    return tmp_path / "scans"


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that the networks saw."""
    work, seen = Cascade.__call__, []

    def call(
        self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str, cache: LogitsCache | None
    ) -> Segmentation:
        seen.append(case_id)
        return work(self, ct, pet, case_id, cache)

    monkeypatch.setattr(Cascade, "__call__", call)
    return seen
