"""`hnseg propose-heads`: which cases it draws, what it writes, and what it leaves alone."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk
from entry import hnseg, refused
from fabricate import ct_image, write_case
from posed import posed

from hnseg.card import Stage
from hnseg.data.heads import draw_cases, propose_head
from hnseg.data.prepare import prepare_case
from hnseg.imaging.case import read_cases
from hnseg.imaging.images import read_label
from hnseg.imaging.masks import mask_bounds
from hnseg.training.cohort import with_head_mask


@pytest.fixture(scope="module")
def head_ct():
    return posed(bottom=-250.0, spacing=(4.0, 4.0, 4.0)).ct


@pytest.fixture
def root(tmp_path, head_ct):
    """A cohort of one scan with a head and one without."""
    pet = sitk.Cast(head_ct > -400, sitk.sitkFloat32) * 1.5  # SUV, where the body is
    write_case(tmp_path / "data", "A-1", ct=head_ct, pet=pet, label=None)
    write_case(tmp_path / "data", "B-1", ct=ct_image(), label=None)
    return tmp_path / "data"


def propose(*arguments):
    return hnseg("propose-heads", *arguments, "--workers", 1)


def table(folder):
    with (folder / "heads.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def test_masks_table_and_picture(root):
    assert "1 heads, 1 scans without one" in propose(root).stdout
    rows = table(root / "heads")
    assert rows["A-1"]["head"] == "yes"
    low, high = mask_bounds(read_label(root / "heads" / "A-1.nii.gz"))
    sides = [[float(rows["A-1"][f"{axis}_{end}"]) for axis in "xyz"] for end in ("min", "max")]
    np.testing.assert_allclose(sides, [low, high], atol=0.06)
    assert (rows["B-1"]["head"], rows["B-1"]["x_min"]) == ("no", "")
    assert "no head" in rows["B-1"]["note"]
    assert not sitk.GetArrayFromImage(read_label(root / "heads" / "B-1.nii.gz")).any()
    assert (root / "heads" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_corrected_mask_is_kept_until_told_otherwise(root):
    assert propose(root).returncode == 0
    path = root / "heads" / "A-1.nii.gz"
    mask = sitk.ReadImage(str(path))
    mask[0, 0, 0] = 1
    sitk.WriteImage(mask, str(path))
    corrected = path.read_bytes()
    assert "2 of these masks were there" in propose(root).stdout
    assert path.read_bytes() == corrected
    assert table(root / "heads")["B-1"]["note"].startswith("no head")  # still what calls for a look
    assert propose(root, "--overwrite").returncode == 0
    assert sitk.ReadImage(str(path))[0, 0, 0] == 0


def test_a_broken_ct_is_one_line_and_the_others_finish(root):
    (root / "B-1" / "B-1__CT.nii.gz").write_bytes(b"no image")
    done = propose(root, "--out", root.parent / "masks")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert len(lines) == 2
    assert lines[0].startswith("B-1: ")
    assert (root.parent / "masks" / "A-1.nii.gz").exists()
    assert not (root.parent / "masks" / "B-1.nii.gz").exists()
    assert table(root.parent / "masks")["B-1"]["head"] == "failed"


def test_a_second_draw_leaves_the_lines_of_the_first(root):
    assert propose(root).returncode == 0
    first = table(root / "heads")
    assert propose(root, "--count", 1, "--overwrite").returncode == 0
    assert table(root / "heads") == first
    (root / "heads" / "B-1.nii.gz").unlink()
    (root / "B-1" / "B-1__CT.nii.gz").rename(root / "B-1.nii.gz")  # gone from the cohort too
    (root / "B-1" / "B-1__PT.nii.gz").unlink()
    assert propose(root).returncode == 0
    assert list(table(root / "heads")) == ["A-1"]


def test_a_stopped_call_leaves_the_lines_of_its_masks(monkeypatch, root):
    def stop(ct):
        if ct.GetSize() == ct_image().GetSize():  # the second case
            raise KeyboardInterrupt
        return propose_head(ct)

    monkeypatch.setattr("hnseg.data.heads.cohort.propose_head", stop)
    assert propose(root).returncode == 130
    assert table(root / "heads")["A-1"]["head"] == "yes"
    assert {path.name for path in (root / "heads").iterdir()} == {"A-1.nii.gz", "heads.csv"}


def test_a_table_that_something_else_saved_is_one_line_and_stays(root):
    (root / "heads").mkdir()
    (root / "heads" / "heads.csv").write_text("case_id,head\nA-1,yes\n")
    line = refused(propose(root))
    assert "heads.csv: has no columns x_min" in line
    assert [path.read_text() for path in (root / "heads").iterdir()] == ["case_id,head\nA-1,yes\n"]


def test_a_list_of_cases_needs_a_folder_for_the_masks(root):
    source = root / "cases.csv"
    source.write_text("case_id,ct,pet\nA-1,A-1/A-1__CT.nii.gz,A-1/A-1__PT.nii.gz\n")
    assert "--out" in refused(propose(source))
    assert propose(source, "--out", root / "masks").returncode == 0
    assert list(table(root / "masks")) == ["A-1"]


def test_the_draw_is_random_repeatable_and_grows():
    cases = list("abcdefghijklmnopqrstuvwxyz")
    few, more = draw_cases(cases, 8, seed=1), draw_cases(cases, 20, seed=1)
    assert (len(few), len(set(few))) == (8, 8)
    assert set(few) < set(more)
    assert few == sorted(few)
    assert few == draw_cases(cases, 8, seed=1) != draw_cases(cases, 8, seed=2)
    assert draw_cases(cases, 40, seed=1) == cases


def test_a_scan_without_a_head_is_a_label_to_train_on(tmp_path, root):
    assert propose(root).returncode == 0
    cases = with_head_mask(read_cases(root), root / "heads")
    assert [case.case_id for case in cases] == ["A-1", "B-1"]
    stage = Stage("localiser", (16, 16, 16), (10.0, 10.0, 12.0), "top_of_scan", ("head",))
    volumes = [prepare_case(case, stage, tmp_path / "cache", masks=root / "heads") for case in cases]
    assert [bool(volume.load("label").any()) for volume in volumes] == [True, False]
