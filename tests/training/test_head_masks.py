"""Which head masks the head stage learns from, and which place the coarse ROI."""

from pathlib import Path

import pytest

from hnseg.config import Data, compose_job
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case
from hnseg.training.cohort import head_folder, require_head_masks, with_head_mask


@pytest.fixture
def heads(tmp_path: Path) -> Data:
    """Folders of drawn and of predicted head masks, as the configuration names them."""
    folders = {"heads": tmp_path / "drawn", "predicted_heads": tmp_path / "predicted"}
    for folder in folders.values():
        folder.mkdir()
    return compose_job([f"data.{key}={folder}" for key, folder in folders.items()]).data


def touch(folder: Path | None, cases: list[Case]) -> None:
    assert folder is not None
    for case in cases:
        (folder / f"{case.case_id}.nii.gz").touch()


CASES = [Case(f"A-{n}", Path("ct"), Path("pet")) for n in range(8)]


def test_the_head_stage_trains_on_the_cases_labelled_by_hand(heads: Data) -> None:
    touch(heads.predicted_heads, CASES)
    folder = head_folder(heads, "head")
    with pytest.raises(HnsegError, match=r"data\.heads=.*: no head mask .* for any of 8 cases; hnseg heads"):
        with_head_mask(CASES, folder)
    touch(heads.heads, CASES[1:2])
    assert with_head_mask(CASES, folder) == CASES[1:2]
    assert head_folder(heads, "coarse") == heads.predicted_heads


@pytest.mark.parametrize("key", ["heads", "predicted_heads"])
def test_a_coarse_roi_needs_every_head(heads: Data, key: str) -> None:
    touch(getattr(heads, key), CASES[:7])
    data = heads.model_copy(update={"predicted_heads": None}) if key == "heads" else heads
    advice = rf"data\.{key}=.*: no head mask of A-7; .*last_stage=head out=DIR\), and set data\.predicted_"
    with pytest.raises(HnsegError, match=advice):
        require_head_masks(CASES, data)
    with pytest.raises(HnsegError, match=r"A-7, A-7, A-7, A-7, A-7 and 95 more; "):
        require_head_masks([CASES[0], *CASES[7:] * 100], data)
    require_head_masks(CASES[:7], data)
