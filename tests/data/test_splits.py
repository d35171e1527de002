"""Folds cover the cohort once, give every centre its share, and are told apart by a hash."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnseg.cases import Case, center_of
from hnseg.data.splits import Split
from hnseg.errors import HnsegError


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


def test_cases_that_a_split_does_not_list_are_left_out_of_its_folds(tmp_path):
    split = Split((("A-0", "A-1"), ("A-2",)))
    train, validation = split.assign([case(f"A-{n}") for n in range(5)], 1)
    assert [c.case_id for c in train] == ["A-0", "A-1"]
    assert [c.case_id for c in validation] == ["A-2"]


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
        (None, "not a split file"),
        ("{", "not a split file"),
        ("[]", "not a split file"),
        ('{"fold": []}', "not a split file"),
        ('{"folds": [1, 2]}', "not a split file"),
        ('{"folds": [["A-000"], ["A-001", "A-000"]]}', "in two folds: A-000"),
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
