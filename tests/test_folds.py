"""How several folds are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hnseg.app import ExpandFolds, expand, expand_arguments
from hnseg.errors import HnsegError


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("3", "3"),
        ("0-4", "0,1,2,3,4"),
        ("0-4,7", "0,1,2,3,4,7"),
        ("0,2", "0,2"),
        ("2-2", "2"),
        ("8-11", "8,9,10,11"),
        ("0-2, 1-3", "0,1,2,3"),
        ("all", "all"),
        ("0-1,all", "0,1,all"),
    ],
)
def test_ranges_are_spelt_out(text: str, folds: str) -> None:
    assert expand(text) == folds


@pytest.mark.parametrize("text", ["range(0,5)", "choice(0,2)", "${oc.env:FOLD}"])
def test_hydras_own_functions_are_left_to_hydra(text: str) -> None:
    assert expand(text) == text


@pytest.mark.parametrize("text", ["x", "", "0-", "-1", "-", "0--2", "0-4-7", "0,,2", "1.5", "[0,1]", "All"])
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(HnsegError) as refusal:
        expand(text)
    line = str(refusal.value)
    assert line.startswith(f"fold={text}: ")
    assert "number or all" in line
    assert "\n" not in line


def test_a_descending_range_is_refused_with_the_rising_one() -> None:
    with pytest.raises(HnsegError, match=r"^fold=4-0: .*write 0-4"):
        expand("4-0")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=6))
def test_exactly_the_folds_of_the_ranges_each_once(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + length}" for first, length in ranges)
    folds = [int(fold) for fold in expand(text).split(",")]
    assert len(folds) == len(set(folds))
    assert set(folds) == {first + step for first, length in ranges for step in range(length + 1)}


@given(st.text(max_size=12))
def test_whatever_is_accepted_reads_the_same_a_second_time(text: str) -> None:
    try:
        folds = expand(text)
    except HnsegError:
        return
    assert expand(folds) == folds


def test_only_the_overrides_of_fold_are_touched() -> None:
    others = ["stage=fine", "-m", "data.fold=0-4", "folds=0-4", "~fold", "name=fold=0-4", "--cfg", "job"]
    assert expand_arguments(others) == others
    assert expand_arguments(["fold=0-2", "+fold=0-1", "++fold=0,3-4", "-m"]) == [
        "fold=0,1,2",
        "+fold=0,1",
        "++fold=0,3,4",
        "-m",
    ]


@pytest.mark.parametrize("params", [None, {"seed": "1,2"}, {"fold": "all", "seed": "1"}])
def test_the_callback_leaves_a_sweep_without_ranges_as_it_is(params: dict[str, str] | None) -> None:
    config = OmegaConf.create({"hydra": {"sweeper": {"params": params}}})
    ExpandFolds().on_multirun_start(config)
    assert config.hydra.sweeper.params == params


def test_the_callback_names_the_key_of_the_sweep_file() -> None:
    config = OmegaConf.create({"hydra": {"sweeper": {"params": {"fold": "4-0"}}}})
    with pytest.raises(HnsegError, match=r"^hydra\.sweeper\.params\.fold=4-0: "):
        ExpandFolds().on_multirun_start(config)
