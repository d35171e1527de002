"""Case lists: what counts as a case, and what is refused by name."""

import re
from pathlib import Path

import pytest

from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, read_cases


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def full_case(root: Path, name: str, ext: str = ".nii.gz") -> None:
    touch(root / name, f"{name}__CT{ext}", f"{name}__PT{ext}", f"{name}{ext}")


def cases_csv(folder: Path, text: str) -> Path:
    touch(folder, "ct.nii.gz", "pt.mha", "label.nii.gz")
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_hecktor_folder_sorted_with_centres(tmp_path):
    for name in ("MDA-010", "CHUM-002", "patient7"):
        full_case(tmp_path, name)
    touch(tmp_path, "clinical.csv")
    touch(tmp_path / "heads", "MDA-010.nii.gz")
    touch(tmp_path / "notes", "readme.txt")
    touch(tmp_path / ".cache", ".cache__CT.nii.gz")
    cases = read_cases(tmp_path)
    assert [(case.case_id, case.center) for case in cases] == [
        ("CHUM-002", "CHUM"),
        ("MDA-010", "MDA"),
        ("patient7", ""),
    ]
    folder = tmp_path / "MDA-010"
    assert cases[1] == Case(
        "MDA-010",
        folder / "MDA-010__CT.nii.gz",
        folder / "MDA-010__PT.nii.gz",
        folder / "MDA-010.nii.gz",
        "MDA",
    )


def test_a_missing_modality_is_refused_or_left_to_the_case(tmp_path):
    full_case(tmp_path, "A")
    touch(tmp_path / "B", "B__CT.nii.gz")
    with pytest.raises(HnsegError, match=r"B__PT\.nii\.gz: the PET of case B is missing"):
        read_cases(tmp_path)
    a, b = read_cases(tmp_path, strict=False)
    assert a.pet.exists()
    assert b.pet == tmp_path / "B" / "B__PT.nii.gz"


def test_a_csv_with_paths_relative_to_itself(tmp_path):
    path = cases_csv(
        tmp_path,
        "\ufeffcase_id , ct, pet ,label, center\n"
        " B-1 , ct.nii.gz , pt.mha , label.nii.gz , Basel \n"
        "\n"
        f"A-1, {tmp_path / 'ct.nii.gz'}, pt.mha\n",
    )
    assert read_cases(path) == [
        Case("A-1", tmp_path / "ct.nii.gz", tmp_path / "pt.mha", None, "A"),
        Case("B-1", tmp_path / "ct.nii.gz", tmp_path / "pt.mha", tmp_path / "label.nii.gz", "Basel"),
    ]


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("", "lacks case_id, ct, pet; write case_id,ct,pet"),
        ("case_id,ct\nA,ct.nii.gz\n", "lacks pet"),
        ("case_id,ct,pet\n", "no case in this CSV"),
        ("case_id,ct,pet\nA,ct.nii.gz,pt.mha\nA,ct.nii.gz,pt.mha\n", "line 3: case id 'A' appears twice"),
        ("case_id,ct,pet\nA,a,b.nii.gz,pt.mha\n", "line 2: 4 cells under 3 columns"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_malformed_csvs_are_refused(tmp_path, text, telling, strict):
    path = cases_csv(tmp_path, text)
    with pytest.raises(HnsegError) as caught:
        read_cases(path, strict=strict)
    assert telling in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("case_id", ["../x", "a\\b", "", "..", ".hidden", "a\0b", '"a\nb"', "x" * 101])
def test_case_ids_that_are_not_plain_file_names_are_refused_or_left_to_the_case(tmp_path, case_id):
    path = cases_csv(tmp_path, f"case_id,ct,pt\n{case_id},ct.nii.gz,pt.mha\nA,ct.nii.gz,pt.mha\n")
    with pytest.raises(HnsegError, match="is not a plain file name") as caught:
        read_cases(path)
    assert "\n" not in str(caught.value)
    (bad,) = (case for case in read_cases(path, strict=False) if case.fault)
    assert re.fullmatch(r"line \d", bad.case_id)
    with pytest.raises(HnsegError, match="is not a plain file name"):
        bad.check()


def test_pet_factors_are_positive_numbers(tmp_path):
    good = cases_csv(tmp_path, "case_id,ct,pet,pet_factor\nA,ct.nii.gz,pt.mha,2.9e-4\nB,ct.nii.gz,pt.mha,\n")
    assert [case.pet_factor for case in read_cases(good)] == [2.9e-4, None]
    for cell in ("0", "-1", "nan", "inf", "0.3 g/ml"):
        bad = cases_csv(tmp_path, f"case_id,ct,pet,pet_factor\nA,ct.nii.gz,pt.mha,{cell}\n")
        with pytest.raises(HnsegError, match=rf"line 2: pet_factor '{cell}' is no positive number"):
            read_cases(bad)
        (case,) = read_cases(bad, strict=False)
        assert "pet_factor" in case.fault
