"""The audit finds what would spoil training, and leaves a sound cohort alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from entry import hnseg
from fabricate import ct_image, label_image, pet_image, volume, write_case

from hnseg.files import read_table
from hnseg.imaging.audit import audit, audit_case, check_case, overlap, print_audit
from hnseg.imaging.case import find_orphans, read_cases


def scaled(image: sitk.Image, factor: float, shift: float = 0) -> sitk.Image:
    return sitk.Cast(image * factor + shift, sitk.sitkFloat32)


def moved(image: sitk.Image, x: float) -> sitk.Image:
    other = sitk.Image(image)
    other.SetOrigin((image.GetOrigin()[0] + x, *image.GetOrigin()[1:]))
    return other


def enlarged(image: sitk.Image, factor: float) -> sitk.Image:
    result = sitk.Image(image)
    result.SetSpacing([factor * step for step in image.GetSpacing()])
    return result


def with_hot_spot(value: float) -> sitk.Image:
    image = pet_image()
    image[5, 5, 5] = value
    return image


def texts(findings, level: str) -> str:
    return " | ".join(finding.text for finding in findings if finding.level == level)


def test_a_sound_case_has_no_findings():
    assert check_case(ct_image(), pet_image(), label_image()) == []
    assert check_case(ct_image(), pet_image()) == []


@pytest.mark.parametrize(
    ("ct", "pet", "telling"),
    [
        (pet_image(), ct_image(), "look swapped"),
        (ct_image(), scaled(pet_image(), 1 / 2e-4), "Bq/ml or counts, not SUV"),
        (ct_image(), ct_image(), "name a PET, not a CT"),
        (ct_image(), scaled(pet_image(), 100), "Bq/ml or counts, not SUV"),
        (ct_image(), scaled(pet_image(), 2e-4), "less than any SUV"),
        (ct_image(), scaled(pet_image(), 0), "PET is 0 everywhere"),
        (scaled(ct_image(), 0, -1000), pet_image(), "CT is -1000 everywhere"),
        (scaled(ct_image(), 1, 1100), pet_image(), "not HU"),
        (scaled(ct_image(), 1e-3), pet_image(), "not HU"),
        (ct_image(), moved(pet_image(), 500), "do not overlap"),
        (enlarged(ct_image(), 1000), enlarged(pet_image(), 1000), "not in mm"),
    ],
)
def test_images_that_make_a_case_unusable(ct, pet, telling):
    assert telling in texts(check_case(ct, pet), "error")


@pytest.mark.parametrize(
    ("ct", "pet", "telling"),
    [
        (ct_image(), scaled(pet_image(), 1 / 12), "not scaled to [0, 1]"),
        (ct_image(), scaled(pet_image(), 5), "check that it is not kBq/ml"),
        (ct_image(), with_hot_spot(800), "injection site"),
        (ct_image(), with_hot_spot(-40), "SUV is not negative"),
        (ct_image(), moved(pet_image(), 60), "PET covers 8% of the body only"),
        (ct_image()[:, :, :10], pet_image()[:, :, :6], "CT covers 30 mm in z only"),
    ],
)
def test_images_that_want_a_look_stay_usable(ct, pet, telling):
    findings = check_case(ct, pet)
    assert telling in texts(findings, "warning")
    assert texts(findings, "error") == ""


def test_a_pet_narrower_than_the_ct_but_not_than_the_body_is_without_fault():
    pet = pet_image()[4:16, 4:16]  # as wide as the body, 36 % of the CT
    assert overlap(ct_image(), pet) < 0.5
    assert check_case(ct_image(), pet) == []


@pytest.mark.parametrize("in_air", [0.0, 1e-3])
def test_becquerel_are_seen_in_the_body_whatever_the_air_and_the_unseen_part_hold(in_air):
    """Scattered noise over air, and zeros where a smaller field of view was filled up, are most voxels."""
    values = np.full((18, 20, 20), in_air, np.float32)
    values[9:, 4:16, 4:16] = 2500
    pet = volume(values, (4, 4, 5), (1, 1, 1))
    assert "Bq/ml" in texts(check_case(ct_image(), pet), "error")


def test_a_label_must_lie_on_the_cts_grid():
    for label in (label_image()[:, :, 1:], moved(label_image(), 0.2), enlarged(label_image(), 2)):
        assert "not on the CT's grid" in texts(check_case(ct_image(), pet_image(), label), "error")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("flip", [False, True])
def test_overlap_is_a_share_of_the_ct(share, flip):
    ct = volume(np.zeros((40, 40, 40), np.float32), (2, 2, 2))
    pet = volume(np.zeros((20, 20, 20), np.float32), (4, 4, 4), (1 + 80 * (1 - share), 1, 1))
    if flip:  # the same field of view, counted from its other end
        pet = sitk.Flip(pet, (True, False, True))
    assert overlap(ct, pet) == pytest.approx(share, abs=1e-6)


def test_lesions_are_counted_and_measured(tmp_path):
    write_case(tmp_path, "A-1")
    found = audit_case(read_cases(tmp_path)[0])
    assert found.usable
    assert found.findings == ()
    assert found.components == {"GTVp": 1, "GTVn": 2}
    assert found.volumes_ml == pytest.approx({"GTVp": 64 * 0.012, "GTVn": 16 * 0.012})
    assert found.overlap == 1
    assert found.ct is not None
    assert (found.ct.size, found.ct.spacing_mm, found.ct.orientation) == ((40, 40, 30), (2, 2, 3), "LPS")


def test_files_that_cannot_be_read_are_findings_of_their_case_alone(tmp_path):
    write_case(tmp_path, "good")
    write_case(tmp_path, "no-pet", pet=None)
    write_case(tmp_path, "only-label", ct=None, pet=None)
    write_case(tmp_path, "odd-label", label=label_image() * 3)
    cut = write_case(tmp_path, "cut", seed=1) / "cut__CT.nii.gz"
    cut.write_bytes(cut.read_bytes()[:5000])
    audits = audit(read_cases(tmp_path, strict=False), workers=1)
    assert [found.case.case_id for found in audits if found.usable] == ["good"]
    refused = {
        found.case.case_id: [issue.text for issue in found.findings] for found in audits if not found.usable
    }
    assert sorted(refused) == ["cut", "no-pet", "odd-label", "only-label"]
    assert "cut short" in refused["cut"][0]
    assert "no-pet__PT.nii.gz: cannot be read (No such file" in refused["no-pet"][0]
    assert len(refused["only-label"]) == 2
    assert "label values 3, 6" in refused["odd-label"][0]


def test_repeated_images_are_found_between_cases_and_across_workers(tmp_path, capsys):
    write_case(tmp_path, "A")
    write_case(tmp_path, "B", pet=pet_image(5))
    write_case(tmp_path, "C", seed=9)
    a, b, c = audit(read_cases(tmp_path), workers=2)
    assert texts(a.findings, "warning").startswith("CT is identical to that of B")
    assert texts(b.findings, "warning").startswith("CT is identical to that of A")
    assert c.findings == ()
    print_audit([a, b, c], ["notes"])
    out = capsys.readouterr().out
    for words in ("GTVp", "B: CT is identical", "notes: belongs to no case", "3 cases, 3 usable, 0 not"):
        assert words in out


def test_faulty_cases_come_first_with_whole_ids_and_the_csv_has_all(tmp_path):
    name = "a-very-long-name-of-a-case-of-some-hospital"
    write_case(tmp_path / "data", "A-1")
    write_case(tmp_path / "data", name, seed=1, pet=None)
    done = hnseg("audit", tmp_path / "data", "--csv", tmp_path / "audit.csv", "--workers", 1)
    assert done.returncode == 1
    assert 0 <= done.stdout.index(f"│ {name} │") < done.stdout.index("│ A-1 ")
    _, rows = read_table(tmp_path / "audit.csv", "")
    assert [(row["case_id"], row["usable"]) for row in rows] == [("A-1", "yes"), (name, "no")]
    assert (rows[0]["GTVn_lesions"], rows[0]["ct_size"], rows[0]["errors"]) == ("2", "40 40 30", "")
    assert "PT.nii.gz" in rows[1]["errors"]


def test_orphans_are_what_belongs_to_no_case(tmp_path):
    folder = write_case(tmp_path, "A.1")
    (tmp_path / "clinical.csv").touch()
    (tmp_path / "heads").mkdir()
    (tmp_path / "notes").mkdir()
    for stray in ("heads/A.1.nii.gz", "heads/B.nii.gz", "loose.mha", "A.1/A.1_CT.nii.gz"):
        (tmp_path / stray).touch()
    (folder / "report.txt").touch()
    assert find_orphans(tmp_path) == ["A.1/A.1_CT.nii.gz", "heads/B.nii.gz", "loose.mha", "notes"]


@pytest.mark.parametrize("folder", ["ibsi_sts", "ccth_neck", pytest.param("ccth", marks=pytest.mark.slow)])
def test_open_data_of_real_scanners_is_usable(folder):
    data = os.environ.get("HNSEG_OPEN_DATA")
    if not data:
        pytest.skip("HNSEG_OPEN_DATA is not set: no open PET/CT to audit")
    root = Path(data) / folder
    audits = audit(read_cases(root), workers=1)
    assert [one.case.case_id for one in audits if not one.usable] == []
    assert find_orphans(root) == []
