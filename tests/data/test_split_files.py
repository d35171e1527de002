"""Split files of other frameworks mean here what they mean to their makers."""

import json
from pathlib import Path

import pytest
from monai.auto3dseg.utils import datafold_read
from nnunetv2.utilities.crossval_split import generate_crossval_split

from hnseg.data.splits import Split, read_split_file
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, center_of


def cohort(*names: str) -> list[Case]:
    return [Case(name, Path("ct"), Path("pet"), Path("label"), center_of(name)) for name in names]


TWELVE = cohort(*(f"{center}-{n:03}" for center in ("CHUM", "MDA") for n in range(6)))


def saved(folder: Path, content: object) -> Path:
    path = folder / "given.json"
    path.write_text(json.dumps(content))
    return path


def ids(cases: list[Case]) -> list[str]:
    return [case.case_id for case in cases]


@pytest.mark.parametrize("folds", [2, 5])
def test_nnunet_s_own_split_trains_and_validates_the_same_cases(tmp_path, folds):
    made = generate_crossval_split(ids(TWELVE), seed=12345, n_splits=folds)
    split = Split.read(saved(tmp_path, made), TWELVE)
    assert len(split.folds) == folds
    for k, entry in enumerate(made):
        train, validation = split.assign(TWELVE, k)
        assert ids(train) == sorted(entry["train"])
        assert ids(validation) == sorted(entry["val"])


@pytest.mark.parametrize(
    ("folds", "reason"),
    [
        ([], "0 folds"),
        ([(["A-1"], ["A-0"])], "1 folds"),
        ([(["A-1"], ["A-0"]), (["A-0"], ["A-1", "A-0"])], "listed twice: A-0;"),
        ([(["A-1"], ["A-0"]), (["A-1", "A-0"], ["A-1"])], '"train" of fold 1 .*: it also has A-1;'),
        ([(["A-1", "A-2"], ["A-0"]), (["A-0", "A-2"], ["A-1"])], '"train" of fold 0 .*: it also has A-2;'),
        ([(["A-1", "A-2"], ["A-0"]), (["A-0"], ["A-1", "A-2"])], None),
        ([(["A-1"], ["A-0"]), (["A-0"], ["A-1", "A-2"])], '"train" of fold 0 .*: it lacks A-2;'),
        ([(["A-1", "A-9"], ["A-0"]), (["A-0"], ["A-1", "A-9"])], "not there: A-9;"),
        ([(["A-1"], ["A-0"]), (["A-0"], ["A-1"])], r"data\.exclude=\[A-2\]"),
    ],
)
def test_nnunet_splits_that_are_no_cross_validation_are_refused_by_name(tmp_path, folds, reason):
    path = saved(tmp_path, [{"train": train, "val": val} for train, val in folds])
    if reason is None:
        assert Split.read(path, cohort("A-0", "A-1", "A-2")).folds == (("A-0",), ("A-1", "A-2"))
        return
    with pytest.raises(HnsegError, match=reason) as caught:
        Split.read(path, cohort("A-0", "A-1", "A-2"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def datalist(name: str, **lists: list[str]) -> dict[str, object]:
    """Twelve cases in three folds, their images named after a pattern, and further lists."""
    training = [
        {"image": [name.format(case_id)], "label": f"labelsTr/{case_id}.nii.gz", "fold": n % 3}
        for n, case_id in enumerate(ids(TWELVE))
    ]
    others = {key: [{"image": name.format(case_id)} for case_id in names] for key, names in lists.items()}
    return {"training": training, **others}


def test_a_datalist_trains_and_validates_the_cases_that_monai_reads_from_it(tmp_path):
    path = saved(tmp_path, datalist("{0}/{0}__CT.nii.gz"))
    split = Split.read(path, TWELVE)
    for fold in range(3):
        theirs = datafold_read(str(path), basedir="", fold=fold)
        for ours, entries in zip(split.assign(TWELVE, fold), theirs, strict=True):
            assert ids(ours) == [Path(entry["image"][0]).parts[0] for entry in entries]


@pytest.mark.parametrize(
    "name",
    [
        "{0}/{0}__CT.nii.gz",
        "{0}/{0}__PT.mha",
        "imagesTr/{0}_0000.nii.gz",
        "imagesTr/{0}.nii.gz",
        "/data/{0}/ct.nii.gz",
        "../{0}/ct_0000.nii.gz",
    ],
)
def test_a_datalist_s_cases_are_found_by_the_names_of_images_or_folders(tmp_path, name):
    split = Split.read(saved(tmp_path, datalist(name)), TWELVE)
    assert split.folds[1] == ("CHUM-001", "CHUM-004", "MDA-001", "MDA-004")


@pytest.mark.parametrize("name", ["imagesTr/{0}__CT.nii.gz", "{0}/{0}_0000.nii.gz", "data/{0}/ct.nii.gz"])
def test_a_datalist_s_cases_are_told_apart_where_none_is_known(tmp_path, name):
    split = read_split_file(saved(tmp_path, datalist(name, testing=["USZ-000"])), ())
    assert split.folds[1] == ("CHUM-001", "CHUM-004", "MDA-001", "MDA-004")
    assert split.aside == ("USZ-000",)


def test_a_case_whose_own_name_ends_like_a_channel_is_itself(tmp_path):
    """hecktor_0000 is no channel of a case hecktor: the cases on disk decide."""
    content = {"training": [{"image": f"imagesTr/hecktor_000{n}.nii.gz", "fold": n} for n in range(2)]}
    split = Split.read(saved(tmp_path, content), cohort("hecktor_0000", "hecktor_0001"))
    assert split.folds == (("hecktor_0000",), ("hecktor_0001",))


def test_a_datalist_s_test_cases_are_known_and_never_trained_on(tmp_path):
    cases = [*TWELVE, *cohort("USZ-000", "USZ-001")]
    content = datalist("{0}/{0}__CT.nii.gz", testing=["USZ-000"], validation=["USZ-001"])
    split = Split.read(saved(tmp_path, content), cases)
    for fold in (0, 1, 2, "all"):
        train, validation = split.assign(cases, fold)
        assert {case.center for case in train + validation} == {"CHUM", "MDA"}


@pytest.mark.parametrize(
    ("entries", "others", "reason"),
    [
        ([("A-0", 0), ("A-1", 1), ("A-2", None)], [], 'no number as "fold" for A-2'),
        ([("A-0", 0), ("A-1", "1"), ("A-2", True)], [], 'no number as "fold" for A-1, A-2'),
        ([("A-0", 0), ("A-1", -1)], [], 'no number as "fold" for A-1'),
        ([("A-0", 0), ("A-1", 2), ("A-2", 2)], [], "3 folds, 1 of them empty"),
        ([("A-0", 0), ("A-1", 1), ("A-1", 0), ("A-2", 0)], [], "listed twice: A-1"),
        ([("A-0", 0), ("A-1", 1), ("A-2", 0)], ["A-2"], "listed twice: A-2"),
        ([("A-0", 0), ("A-1", 1), ("A-7", 0)], ["A-2"], "not there: A-7;"),
        ([("A-0", 0), ("A-1", 1)], [], r"data\.exclude=\[A-2\]"),
        ([], [], "0 folds"),
    ],
)
def test_a_faulty_datalist_is_refused_by_name(tmp_path, entries, others, reason):
    training = [{"image": f"{name}/{name}__CT.nii.gz", "fold": fold} for name, fold in entries]
    path = saved(tmp_path, {"training": training, "testing": [f"{name}.nii.gz" for name in others]})
    with pytest.raises(HnsegError, match=reason) as caught:
        Split.read(path, cohort("A-0", "A-1", "A-2"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [{"training": [{"fold": 0}]}, {"training": [{"image": [], "fold": 0}]}, [[]]]
)
def test_what_only_looks_like_their_formats_is_no_split_file(tmp_path, content):
    with pytest.raises(HnsegError, match="not a split file"):
        Split.read(saved(tmp_path, content), TWELVE)
