"""Masks that place a ROI, or are what the head stage learns."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume, write_case

from hnseg.card import Stage
from hnseg.data.prepare import prepare_case
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.placement import place
from hnseg.imaging.suv import read_scan

HEAD = Stage("head", (10, 10, 8), (10.0, 10.0, 12.0), "top_of_scan", ("head",))
COARSE = Stage("coarse", (18, 18, 18), (4.0, 4.0, 4.0), "below_head")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    write_case(tmp_path / "data", "A-1")
    (one,) = read_cases(tmp_path / "data")
    return one


def write_head(folder: Path, value: int = 1, origin: tuple[float, ...] = (0, 0, 0), voxels: int = 40) -> Path:
    mask = np.zeros((30, 40, 40), np.uint8)
    mask[10:30, 8:32, 8:32].flat[: voxels**3] = value
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(volume(mask, (2, 2, 3), origin), str(folder / "A-1.nii.gz"))
    return folder


def test_a_head_is_a_head_whichever_value_an_editor_gave_it(case: Case, tmp_path: Path) -> None:
    labels = [
        prepare_case(
            case, HEAD, tmp_path / f"cache_{value}", masks=write_head(tmp_path / "heads", value)
        ).load("label")
        for value in (1, 2)
    ]
    assert set(np.unique(labels[0])) == {0, 1}
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize("stage", [HEAD, COARSE])
def test_a_mask_beside_the_scan_is_refused(case: Case, tmp_path: Path, stage: Stage) -> None:
    heads = write_head(tmp_path / "heads", origin=(900, 900, 900))
    with pytest.raises(HnsegError, match=r"heads/A-1\.nii\.gz: is not on the CT's grid"):
        prepare_case(case, stage, tmp_path / "cache", masks=heads)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_stray_that_a_network_took_for_a_head_places_nothing(
    case: Case, tmp_path: Path, labelled: bool
) -> None:
    """As in infer.py: what somebody has drawn is a head however small."""
    heads = write_head(tmp_path / "heads", voxels=2)
    if labelled:
        (heads / "cases.csv").write_text("case_id,status\nA-1,ok\n")
    entry = prepare_case(case, COARSE, tmp_path / "cache", masks=heads)
    head = sitk.ReadImage(str(heads / "A-1.nii.gz"))
    placed = place(COARSE, *read_scan(case), head, manual=not labelled)
    assert entry.meta["fallback"] == placed.fallback
    assert entry.meta["grid"] == placed.grid.to_dict()
    assert (placed.fallback is not None) == labelled
