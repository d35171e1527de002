"""The folder that masks are written to: what goes, what stays, and what is refused."""

import csv
import fcntl
import os
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from again import NAMES, cascade, statuses
from results import table

from hnseg.errors import HnsegError
from hnseg.inference.cascade import Cascade, Segmentation
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


@pytest.mark.parametrize("drawn", ["A.nii.gz", "A.mha", "A.nii", "maps/A/entropy.nii.gz"])
def test_what_somebody_has_changed_stays_until_replacing_is_asked_for(
    scans: Path, bundle: Bundle, tmp_path: Path, drawn: str
) -> None:
    stages, out = cascade(bundle, uncertainty=True), tmp_path / "out"
    statuses(scans, stages, out)
    (out / drawn).write_bytes(b"corrected by hand")
    for settings in ({}, {"extension": ".mha"}):
        with pytest.raises(
            HnsegError, match=r"the files of A there are not as infer\.py wrote them; move them"
        ):
            statuses(scans, stages, out, **settings)
        assert (out / drawn).read_bytes() == b"corrected by hand"
    assert statuses(scans, stages, out, overwrite=True)["A"] == "ok"
    assert sitk.ReadImage(str(out / "A.nii.gz")).GetPixelID() == sitk.sitkUInt8


def test_a_mask_drawn_for_a_case_that_failed_stays(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    (scans / "B" / "B__PT.nii.gz").write_bytes(b"damaged")
    assert statuses(scans, cascade(bundle), tmp_path / "out")["B"] == "error"
    (tmp_path / "out" / "B.nii.gz").write_bytes(b"drawn by hand")
    with pytest.raises(HnsegError, match="the files of B there"):
        statuses(scans, cascade(bundle), tmp_path / "out")
    assert (tmp_path / "out" / "B.nii.gz").read_bytes() == b"drawn by hand"


def test_a_drawn_mask_outlives_a_case_that_fails_when_all_are_done_again(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    statuses(scans, cascade(bundle), tmp_path / "out")
    (tmp_path / "out" / "B.nii.gz").write_bytes(b"corrected by hand")
    (scans / "B" / "B__PT.nii.gz").write_bytes(b"damaged")
    assert statuses(scans, cascade(bundle), tmp_path / "out", overwrite=True)["B"] == "error"
    assert (tmp_path / "out" / "B.nii.gz").read_bytes() == b"corrected by hand"


def test_a_mask_that_is_put_there_meanwhile_stays(
    scans: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, out = Cascade.__call__, tmp_path / "out"

    def call(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> Segmentation:
        if case_id == "B":
            (out / "B.nii.gz").write_bytes(b"drawn by hand")
        return segment(self, ct, pet, case_id)

    monkeypatch.setattr(Cascade, "__call__", call)
    assert statuses(scans, cascade(bundle), out) == {"A": "ok", "B": "error", "C": "ok"}
    assert (out / "B.nii.gz").read_bytes() == b"drawn by hand"
    assert "put there meanwhile" in table(out)["B"]["message"]
    assert not list(out.glob(".*"))


def test_masks_of_an_older_hnseg_are_made_again(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Its table tells one digest, not each file's."""
    out = tmp_path / "out"
    statuses(scans, cascade(bundle), out)
    rows = table(out)
    with (out / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows["A"].keys())
        writer.writeheader()
        writer.writerows(row | {"written": "0a" * 32} for row in rows.values())
    assert statuses(scans, cascade(bundle), out) == dict.fromkeys(NAMES, "ok")


def test_scans_and_notes_where_maps_would_lie_stay(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cohort = shutil.copytree(scans, out / "maps")
    (cohort / "A" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in cohort.rglob("*.*")}
    statuses(cohort, cascade(bundle, uncertainty=True), out)
    statuses(cohort, cascade(bundle), out)  # whose maps go
    assert {path: path.read_bytes() for path in cohort.rglob("*.*")} == before


def test_lesions_of_another_table_are_told_before_any_network_runs(
    scans: Path, bundle: Bundle, tmp_path: Path, networks: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lesions.csv").write_text("case_id,lesion,size\n")
    with pytest.raises(HnsegError, match=r"lesions\.csv: its columns are not"):
        statuses(scans, cascade(bundle), tmp_path / "out")
    assert not networks


def test_a_mask_never_takes_an_images_place(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    truth = (scans / "A" / "A.nii.gz").read_bytes()
    with pytest.raises(HnsegError, match=r"out=.*A\.nii\.gz is an image of the case list"):
        statuses(scans, cascade(bundle), scans / "A")
    assert (scans / "A" / "A.nii.gz").read_bytes() == truth
