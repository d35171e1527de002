"""Folds cover the cohort once, give every centre its share, and mean what other frameworks' files mean."""

import json
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.auto3dseg.utils import datafold_read
from nnunetv2.utilities.crossval_split import generate_crossval_split

from hnseg.data.splits import Split, read_split_file
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, center_of


def case(case_id: str) -> Case:
    return Case(case_id, Path("ct"), Path("pet"), Path("label"), center_of(case_id))


def cohort(**centers: int) -> list[Case]:
    """`CHUM=3` → CHUM-000, CHUM-001, CHUM-002."""
    return [case(f"{name}-{n:03}") for name, count in centers.items() for n in range(count)]


def ids(cases: list[Case]) -> list[str]:
    return [case.case_id for case in cases]


def saved(folder: Path, content: object) -> Path:
    path = folder / "given.json"
    path.write_text(json.dumps(content))
    return path


TWELVE = cohort(CHUM=6, MDA=6)
COHORTS = st.lists(st.integers(1, 30), min_size=1, max_size=7).map(
    lambda counts: cohort(**{f"C{n}": count for n, count in enumerate(counts)})
)


@settings(max_examples=60, deadline=None)
@given(cases=COHORTS, folds=st.integers(2, 7), seed=st.integers(0, 9))
def test_folds_are_disjoint_cover_all_and_share_out_every_centre(cases, folds, seed):
    if folds > len(cases):
        return
    split = Split.make(cases, folds, seed)
    assert split == Split.make(cases[::-1], folds, seed)
    assert sorted(chain(*split.folds)) == sorted(ids(cases))
    sizes = [len(fold) for fold in split.folds]
    assert max(sizes) - min(sizes) <= 1
    for center in {c.center for c in cases}:
        counts = [sum(center_of(i) == center for i in fold) for fold in split.folds]
        assert max(counts) - min(counts) <= 1


def test_each_fold_is_held_out_once_and_all_trains_on_everything():
    split = Split.make(TWELVE, 3, 0)
    held = []
    for fold in range(3):
        train, validation = split.assign(TWELVE, fold)
        assert not set(ids(train)) & set(ids(validation))
        assert len(train) + len(validation) == len(TWELVE)
        held += validation
    assert sorted(ids(held)) == ids(TWELVE)
    train, validation = split.assign(TWELVE, "all")
    assert train == TWELVE
    assert set(ids(validation)) == set(split.folds[0])


def test_a_split_comes_back_from_disk(tmp_path):
    split = Split.leave_one_center_out(TWELVE)
    path = tmp_path / "deep" / "split.json"
    split.write(path)
    assert Split.read(path, TWELVE) == split
    assert split.hash == json.loads(path.read_text())["hash"]
    assert list(path.parent.iterdir()) == [path]


def test_a_centre_a_fold_in_the_order_of_their_names():
    cases = cohort(USZ=2, CHUM=3, HGJ=1)
    split = Split.leave_one_center_out(cases)
    assert split.folds == (("CHUM-000", "CHUM-001", "CHUM-002"), ("HGJ-000",), ("USZ-000", "USZ-001"))
    assert [split.title(k) for k in (0, 2, "all")] == ["fold 0 (CHUM)", "fold 2 (USZ)", "fold all"]
    train, validation = split.assign(cases, 1)
    assert {c.center for c in train} == {"CHUM", "USZ"}
    assert {c.center for c in validation} == {"HGJ"}


def test_a_stage_with_fewer_cases_keeps_the_numbers_of_the_folds():
    cases = cohort(A=2, B=2, C=2)
    masked = [c for c in cases if c.case_id not in ("A-001", "B-000", "B-001")]
    split = Split.leave_one_center_out(cases).only(masked)
    assert split.folds == (("A-000",), (), ("C-000", "C-001"))
    train, validation = split.assign(masked, 2)
    assert (ids(train), ids(validation)) == (["A-000"], ["C-000", "C-001"])
    with pytest.raises(HnsegError, match=r"fold=1: no case to validate on.*data\.head_labels"):
        split.assign(masked, 1)
    with pytest.raises(HnsegError, match=r"fold=0: no case to train on"):
        split.assign(masked[:1], 0)


@pytest.mark.parametrize("fold", [3, -1, "0"])
def test_an_impossible_fold_is_refused_with_those_there_are(fold):
    split = Split.leave_one_center_out(cohort(A=1, B=1, C=1))
    with pytest.raises(HnsegError, match=rf"fold={fold}: .* 0 to 2 \(0 A, 1 B, 2 C\), or fold=all"):
        split.assign([], fold)


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 5])
def test_nnunet_s_own_split_trains_and_validates_the_same_cases(tmp_path, folds):
    made = generate_crossval_split(ids(TWELVE), seed=12345, n_splits=folds)
    split = Split.read(saved(tmp_path, made), TWELVE)
    assert len(split.folds) == folds
    for k, entry in enumerate(made):
        train, validation = split.assign(TWELVE, k)
        assert (ids(train), ids(validation)) == (sorted(entry["train"]), sorted(entry["val"]))


def datalist(name: str, **others: list[str]) -> dict[str, object]:
    """Twelve cases in three folds, their images named after a pattern, and further lists."""
    training = [{"image": [name.format(i)], "fold": n % 3} for n, i in enumerate(ids(TWELVE))]
    lists = {key: [{"image": name.format(case_id)} for case_id in names] for key, names in others.items()}
    return {"training": training, **lists}


def test_a_datalist_trains_and_validates_the_cases_that_monai_reads_from_it(tmp_path):
    path = saved(tmp_path, datalist("{0}/{0}__CT.nii.gz"))
    split = Split.read(path, TWELVE)
    for fold in range(3):
        theirs = datafold_read(str(path), basedir="", fold=fold)
        for ours, entries in zip(split.assign(TWELVE, fold), theirs, strict=True):
            assert ids(ours) == [Path(entry["image"][0]).parts[0] for entry in entries]


def test_a_datalist_s_test_cases_are_never_trained_on(tmp_path):
    cases = [*TWELVE, case("USZ-000"), case("USZ-001")]
    content = datalist("{0}/{0}__CT.nii.gz", testing=["USZ-000"], validation=["USZ-001"])
    split = Split.read(saved(tmp_path, content), cases)
    assert split.test_cases == ("USZ-001", "USZ-000")
    for fold in (0, "all"):
        train, validation = split.assign(cases, fold)
        assert {case.center for case in train + validation} == {"CHUM", "MDA"}


def nnunet(*folds: tuple[list[str], list[str]]) -> list[dict[str, list[str]]]:
    return [{"train": train, "val": val} for train, val in folds]


def auto3dseg(*entries: tuple[str, object], testing: tuple[str, ...] = ()) -> dict[str, object]:
    training = [{"image": f"{name}__CT.nii.gz", "fold": fold} for name, fold in entries]
    return {"training": training, "testing": [f"{name}.nii.gz" for name in testing]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (17, "not a split file"),
        ({"fold": []}, "not a split file.*no list of folds"),
        ({"folds": ["A-000", "A-001"]}, "not a split file.*'A-000' is not a list"),
        (auto3dseg(("A-000", 0), ("A-001", 2)), r"folds \[0, 2\] are not numbered from 0"),
        ({"folds": [["A-000", "A-001"]]}, "1 folds, 0 of them empty"),
        ({"folds": [["A-000", "A-001"], []]}, "2 folds, 1 of them empty"),
        ({"folds": [["A-000"], ["A-001", "A-000"]]}, "listed twice: A-000"),
        (auto3dseg(("A-000", 0), ("A-001", 1), testing=("A-001",)), "listed twice: A-001"),
        ({"folds": [["A-000"], ["A-001", "A-009"]]}, "not on disk: A-009;"),
        (nnunet((["A-001"], ["A-000"]), (["A-001", "A-000"], ["A-001"])), '"train" of fold 1 .* A-001;'),
        (nnunet((["A-001", "A-002"], ["A-000"]), (["A-000"], ["A-001"])), '"train" of fold 0 .* A-002;'),
        (nnunet((["A-001"], ["A-000"]), (["A-000"], ["A-001", "A-002"])), '"train" of fold 0 .* A-002;'),
    ],
)
def test_a_bad_split_file_is_named_with_its_fault(tmp_path, content, reason):
    path = saved(tmp_path, content)
    with pytest.raises(HnsegError, match=reason) as caught:
        Split.read(path, cohort(A=2))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_committed_split_of_the_open_data_is_sound():
    split = read_split_file(Path(__file__).parents[2] / "conf" / "data" / "ibsi_sts_split.json")
    assert [len(fold) for fold in split.folds] == [6] * 4


def test_cases_that_a_split_lacks_are_named_with_the_remedy(tmp_path):
    path = saved(tmp_path, {"folds": [["A-000"], ["A-002"]]})
    with pytest.raises(HnsegError, match=r"in no fold;.* data\.exclude=\[A-001,A-003\]$"):
        Split.read(path, cohort(A=4))
