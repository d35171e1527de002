"""The folder that masks are written to: what goes, what stays, and what is refused."""

import fcntl
import os
from pathlib import Path

import pytest
from again import NAMES, cascade, statuses

from hnseg.errors import HnsegError
from hnseg.models.bundle import Bundle


def test_leftovers_of_a_killed_run_go_and_other_files_stay(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (f".{'0a' * 16}.nii.gz", f".{'b1' * 16}.csv", ".hidden", "notes.txt"):
        (out / name).touch()
    statuses(scans, cascade(bundle), out)
    assert {path.name for path in out.iterdir()} - {f"{name}.nii.gz" for name in NAMES} == {
        ".hidden",
        "notes.txt",
        "cases.csv",
        "lesions.csv",
    }


def test_a_folder_that_another_process_writes_to_is_refused(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    held = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(HnsegError, match=r"out: another process writes there"):
        statuses(scans, cascade(bundle), tmp_path / "out")
    os.close(held)
    assert set(statuses(scans, cascade(bundle), tmp_path / "out").values()) == {"ok"}


@pytest.mark.parametrize("text", ["case_id,ct,pet\nA,a,b\n", "case_id\xff"])
def test_a_table_of_something_else_is_not_replaced(
    scans: Path, bundle: Bundle, tmp_path: Path, text: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cases.csv").write_text(text, encoding="latin-1")
    with pytest.raises(HnsegError, match=r"cases\.csv: .*choose another folder for out"):
        statuses(scans, cascade(bundle), tmp_path / "out")
    assert (tmp_path / "out" / "cases.csv").read_text(encoding="latin-1") == text


def test_a_mask_never_takes_an_images_place(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    truth = (scans / "A" / "A.nii.gz").read_bytes()
    with pytest.raises(HnsegError, match=r"out=.*A\.nii\.gz is an image of the case list"):
        statuses(scans, cascade(bundle), scans / "A")
    assert (scans / "A" / "A.nii.gz").read_bytes() == truth
