"""Which cases a training deals into folds, and which masks place its ROIs."""

import json
import shutil
from pathlib import Path

import pytest

from hnseg.config import Data, compose_job
from hnseg.data.splits import Split
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case
from hnseg.training.cohort import head_folder, read_cohort, require_head_masks, with_head_mask

NAMES = ["CHUM-0", "CHUM-1", "CHUS-0", "CHUS-1", "MDA-0", "MDA-1"]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six cases of empty files in three centres, the first of each with a head mask."""
    root = tmp_path / "scans"
    (root / "heads").mkdir(parents=True)
    for name in NAMES:
        (root / name).mkdir()
        for suffix in ("__CT", "__PT", ""):
            (root / name / f"{name}{suffix}.nii.gz").touch()
        if name.endswith("0"):
            (root / "heads" / f"{name}.nii.gz").touch()
    return root


def read(scans: Path, stage: str, *overrides: str) -> tuple[list[str], tuple[tuple[str, ...], ...]]:
    data = compose_job([f"data.root={scans}", *overrides]).data
    cases, split = read_cohort(data, stage)
    return [case.case_id for case in cases], split.folds


def test_the_folds_are_dealt_among_the_cases_a_stage_can_learn_from(scans: Path) -> None:
    cases, folds = read(scans, "fine", "data.folds=2")
    assert cases == NAMES
    assert sorted(sum(folds, ())) == NAMES
    cases, folds = read(scans, "localiser", "data.folds=3")
    assert cases == ["CHUM-0", "CHUS-0", "MDA-0"]
    assert [len(fold) for fold in folds] == [1, 1, 1]


def test_a_centre_is_held_out_under_the_same_number_by_every_stage(scans: Path) -> None:
    (scans / "heads" / "CHUM-0.nii.gz").unlink()
    assert read(scans, "coarse", "data.split=centres")[1][2] == ("MDA-0", "MDA-1")
    assert read(scans, "localiser", "data.split=centres")[1] == ((), ("CHUS-0",), ("MDA-0",))


def test_a_given_split_serves_the_head_stage_without_the_cases_that_have_no_mask(scans: Path) -> None:
    path = scans / "splits_final.json"
    folds = [NAMES[::2], NAMES[1::2]]
    path.write_text(json.dumps([{"train": folds[1 - k], "val": folds[k]} for k in range(2)]))
    assert read(scans, "fine", f"data.split={path}")[1] == tuple(map(tuple, folds))
    assert read(scans, "localiser", f"data.split={path}")[1] == (("CHUM-0", "CHUS-0", "MDA-0"), ())


@pytest.mark.parametrize("extra", [{}, {"hash": Split((tuple(NAMES[:3]), tuple(NAMES[3:]))).hash}])
def test_a_case_that_the_split_lists_can_be_excluded(scans: Path, extra: dict[str, str]) -> None:
    """As the refusal of a damaged scan advises; the file, hashed or not, stays as it is."""
    path = scans / "split.json"
    path.write_text(json.dumps({"folds": [NAMES[:3], NAMES[3:]], **extra}))
    cases, folds = read(scans, "fine", f"data.split={path}", "data.exclude=[MDA-1]")
    assert cases == NAMES[:5]
    assert folds == (tuple(NAMES[:3]), ("CHUS-1", "MDA-0"))
    with pytest.raises(HnsegError, match=r"data\.exclude=A-9: no such case"):
        read(scans, "fine", "data.exclude=[CHUM-0,A-9]")
    shutil.rmtree(scans / "CHUM-0")
    with pytest.raises(HnsegError, match=r"not on disk: CHUM-0; check data\.root"):
        read(scans, "fine", f"data.split={path}", "data.exclude=[MDA-1]")


CASES = [Case(f"A-{n}", Path("ct"), Path("pet")) for n in range(8)]


@pytest.fixture
def heads(tmp_path: Path) -> Data:
    """Folders of drawn and of predicted head masks, as the configuration names them."""
    folders = {"head_labels": tmp_path / "drawn", "head_masks": tmp_path / "predicted"}
    for folder in folders.values():
        folder.mkdir()
    return compose_job([f"data.{key}={folder}" for key, folder in folders.items()]).data


def touch(folder: Path, cases: list[Case]) -> None:
    for case in cases:
        (folder / f"{case.case_id}.nii.gz").touch()


def test_the_localiser_trains_on_the_cases_labelled_by_hand(heads: Data) -> None:
    assert heads.head_masks is not None
    touch(heads.head_masks, CASES)
    folder = head_folder(heads, "localiser")
    with pytest.raises(
        HnsegError, match=r"data\.head_labels=.*: no head mask .*any of 8 cases; hnseg propose-heads"
    ):
        with_head_mask(CASES, folder)
    touch(heads.head_labels, CASES[1:2])
    assert with_head_mask(CASES, folder) == CASES[1:2]
    assert head_folder(heads, "coarse") == heads.head_masks


@pytest.mark.parametrize("key", ["head_labels", "head_masks"])
def test_a_coarse_roi_needs_every_head(heads: Data, key: str) -> None:
    touch(getattr(heads, key), CASES[:7])
    data = heads.model_copy(update={"head_masks": None}) if key == "head_labels" else heads
    with pytest.raises(HnsegError, match=rf"data\.{key}=.*: no head mask of A-7; .*set data\.head_masks=DIR"):
        require_head_masks(CASES, data)
    require_head_masks(CASES[:7], data)
