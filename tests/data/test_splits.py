"""Folds cover the cohort once, give every centre its share, and are told apart by a hash."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnseg.data.splits import Split
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, center_of


def case(case_id: str) -> Case:
    return Case(case_id, Path("ct"), Path("pet"), Path("label"), center_of(case_id))


def cohort(**centers: int) -> list[Case]:
    """`CHUM=3` → CHUM-000, CHUM-001, CHUM-002."""
    return [case(f"{name}-{n:03}") for name, count in centers.items() for n in range(count)]


COHORTS = st.lists(st.integers(1, 30), min_size=1, max_size=7).map(
    lambda counts: cohort(**{f"C{n}": count for n, count in enumerate(counts)})
)


@settings(max_examples=60, deadline=None)
@given(cases=COHORTS, folds=st.integers(2, 7), seed=st.integers(0, 9))
def test_folds_are_disjoint_cover_all_and_share_out_every_centre(cases, folds, seed):
    if folds > len(cases):
        return
    split = Split.make(cases, folds, seed)
    assert sorted(chain(*split.folds)) == sorted(c.case_id for c in cases)
    sizes = [len(fold) for fold in split.folds]
    assert max(sizes) - min(sizes) <= 1
    for center in {c.center for c in cases}:
        counts = [sum(center_of(i) == center for i in fold) for fold in split.folds]
        assert max(counts) - min(counts) <= 1


def test_the_challenge_s_centres_are_dealt_out_evenly():
    cases = cohort(MDA=396, CHUS=72, CHUP=72, CHUM=56, HGJ=55, HMR=18, USZ=11)
    split = Split.make(cases, 5, 0)
    assert [len(fold) for fold in split.folds] == [136] * 5
    assert {Counter(map(center_of, fold))["MDA"] for fold in split.folds} == {79, 80}


def test_the_seed_decides_and_the_order_of_the_list_does_not():
    cases = cohort(A=20, B=11)
    assert Split.make(cases, 5, 0) == Split.make(cases[::-1], 5, 0)
    assert Split.make(cases, 5, 0) != Split.make(cases, 5, 1)
    assert Split.make(cases, 5, 0).hash == Split.make(cases, 5, 0).hash
    assert Split.make(cases, 5, 0).hash != Split.make(cases, 5, 1).hash
    assert Split.make(cases, 5, 0).hash != Split.make(cases[:-1], 5, 0).hash


def test_each_fold_is_held_out_once_and_all_trains_on_everything():
    cases = cohort(A=7, B=6)
    split = Split.make(cases, 3, 0)
    held = []
    for fold in range(3):
        train, validation = split.assign(cases, fold)
        assert not {c.case_id for c in train} & {c.case_id for c in validation}
        assert len(train) + len(validation) == len(cases)
        held += validation
    assert sorted(c.case_id for c in held) == sorted(c.case_id for c in cases)
    train, validation = split.assign(cases, "all")
    assert train == cases
    assert {c.case_id for c in validation} == set(split.folds[0])


def test_a_split_comes_back_from_disk(tmp_path):
    cases = cohort(A=7, B=6)
    split = Split.make(cases, 3, 0)
    path = tmp_path / "deep" / "split.json"
    split.write(path)
    again = Split.read(path, cases)
    assert again == split
    assert again.hash == split.hash == json.loads(path.read_text())["hash"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("fold", "trained", "held"),
    [(1, ["A-0", "A-1"], ["A-2"]), ("all", ["A-0", "A-1", "A-2"], ["A-0", "A-1"])],
)
def test_cases_in_no_fold_are_neither_trained_on_nor_validated_on(fold, trained, held):
    split = Split((("A-0", "A-1"), ("A-2",)))
    train, validation = split.assign([case(f"A-{n}") for n in range(5)], fold)
    assert [c.case_id for c in train] == trained
    assert [c.case_id for c in validation] == held


def test_cases_that_a_split_does_not_know_are_named_with_the_remedy(tmp_path):
    path = tmp_path / "split.json"
    Split((("A-000",), ("A-002",))).write(path)
    with pytest.raises(HnsegError, match=r"in no fold;.* data\.exclude=\[A-001,A-003\]$"):
        Split.read(path, cohort(A=4))


def test_a_centre_a_fold_in_the_order_of_their_names(tmp_path):
    cases = cohort(USZ=2, CHUM=3, HGJ=1)
    split = Split.leave_one_center_out(cases)
    assert split.folds == (("CHUM-000", "CHUM-001", "CHUM-002"), ("HGJ-000",), ("USZ-000", "USZ-001"))
    assert [split.title(k) for k in (0, 1, 2, "all")] == [
        "fold 0 (CHUM)",
        "fold 1 (HGJ)",
        "fold 2 (USZ)",
        "fold all",
    ]
    train, validation = split.assign(cases, 1)
    assert {c.center for c in train} == {"CHUM", "USZ"}
    assert {c.center for c in validation} == {"HGJ"}
    with pytest.raises(HnsegError, match=r"fold=3: .* 0 to 2 \(0 CHUM, 1 HGJ, 2 USZ\), or fold=all"):
        split.assign(cases, 3)
    split.write(tmp_path / "split.json")
    assert Split.read(tmp_path / "split.json", cases) == split


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["A-1", "B-1", "patient", "other"], "not known of other, patient"),
        (["A-1", "A-2"], "A is the only centre"),
    ],
)
def test_leaving_a_centre_out_takes_two_known_ones(names, reason):
    with pytest.raises(HnsegError, match=rf"data\.split=centres: .*{reason}"):
        Split.leave_one_center_out([case(name) for name in names])


def test_a_stage_with_fewer_cases_keeps_the_numbers_of_the_folds():
    cases = cohort(A=2, B=2, C=2)
    masked = [c for c in cases if c.case_id not in ("A-001", "B-000", "B-001")]
    split = Split.leave_one_center_out(cases).only(masked)
    assert split.folds == (("A-000",), (), ("C-000", "C-001"))
    assert split.title(2) == "fold 2 (C)"
    train, validation = split.assign(masked, 2)
    assert [c.case_id for c in train] == ["A-000"]
    assert [c.case_id for c in validation] == ["C-000", "C-001"]
    with pytest.raises(HnsegError, match=r"fold=1: no case to validate on.*data\.heads"):
        split.assign(masked, 1)
    with pytest.raises(HnsegError, match=r"fold=0: no case to train on"):
        split.assign(masked[:1], 0)


@pytest.mark.parametrize("fold", [3, -1, "0", "some", None, 1.0, True])
def test_an_impossible_fold_is_refused_with_those_there_are(fold):
    cases = cohort(A=6)
    with pytest.raises(HnsegError, match=rf"fold={fold}: this split has folds 0 to 2, or fold=all"):
        Split.make(cases, 3, 0).assign(cases, fold)


@pytest.mark.parametrize("folds", [0, 1, 7])
def test_an_impossible_number_of_folds_is_refused(folds):
    with pytest.raises(HnsegError, match=f"data.folds={folds} with 6 cases"):
        Split.make(cohort(A=6), folds, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such split file"),
        ("{", "not a split file"),
        ("17", "not a split file"),
        ('"folds"', "not a split file"),
        ('{"fold": []}', "not a split file.*it has no folds"),
        ('{"folds": [1, 2]}', "not a split file"),
        ('{"folds": ["A-000", "A-001"]}', "not a split file.*'A-000' is not a list"),
        ('{"folds": [["A-000"], ["A-001"]], "names": ["A"]}', "not a split file.*1 names for 2 folds"),
        ('{"folds": [["A-000"], ["A-001"]], "hash": "0"}', '"hash" 0 is not that of its folds'),
        ('{"folds": [["A-000"], ["A-001", "A-000"]]}', "listed twice: A-000"),
        ('{"folds": [["A-000"], ["A-001", "A-009"]]}', "not there.*: A-009"),
        ('{"folds": [["A-000"], [17]]}', "not there.*: 17"),
        ('{"folds": [["A-000", "A-001"]]}', "two or more"),
        ('{"folds": [["A-000", "A-001"], []]}', "none empty"),
    ],
)
def test_a_bad_split_file_is_named_with_its_fault(tmp_path, content, reason):
    path = tmp_path / "split.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HnsegError, match=reason) as caught:
        Split.read(path, cohort(A=2))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_committed_split_of_the_open_data_is_sound():
    path = Path(__file__).parents[2] / "conf" / "data" / "ibsi_sts_split.json"
    listed = list(chain(*json.loads(path.read_text())["folds"]))
    assert len(listed) == len(set(listed)) == 24
    split = Split.read(path, [case(i) for i in listed])
    assert [len(fold) for fold in split.folds] == [6] * 4
