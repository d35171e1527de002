"""Entries of the cache: whole or not there, for every process and user, and never changed under a reader."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnseg.card import Stage
from hnseg.data import cache as module
from hnseg.data.cache import StageVolume, is_whole
from hnseg.data.prepare import prepare_case
from hnseg.imaging.case import Case

FINE = Stage("fine", (14, 12, 10), (3.0, 3.5, 5.0), "lesions")


@pytest.fixture
def entry(cohort: list[Case], tmp_path: Path) -> StageVolume:
    return prepare_case(cohort[0], FINE, tmp_path)


@pytest.mark.parametrize("moment", ["save", "rename"])
def test_a_case_that_is_cut_off_leaves_no_half_entry(cohort, tmp_path, monkeypatch, moment):
    calls = []

    def cut_off(*args: Any, **_: Any) -> None:
        calls.append(args)
        if moment == "rename" or len(calls) == 2:
            raise KeyboardInterrupt

    if moment == "save":
        monkeypatch.setattr(module.np, "save", cut_off)
    else:
        monkeypatch.setattr(Path, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        prepare_case(cohort[0], FINE, tmp_path)
    assert calls
    assert [path.name for path in tmp_path.rglob("*")] == [cohort[0].case_id]


def test_folds_that_prepare_at_the_same_time_do_not_disturb_each_other(cohort, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: prepare_case(cohort[0], FINE, tmp_path), range(24)))
    assert len(set(made)) == 1
    # Only the entry is left; and it stays where others have it open.
    assert list(made[0].folder.parent.iterdir()) == [made[0].folder]
    inode = (made[0].folder / "pet.npy").stat().st_ino
    prepare_case(cohort[0], FINE, tmp_path)
    assert (made[0].folder / "pet.npy").stat().st_ino == inode


@pytest.mark.parametrize(
    ("name", "content"),
    [("meta.json", b""), ("meta.json", b"[]"), ("pet.npy", b"\x93NUMPY"), ("label.npy", None)],
)
def test_a_damaged_entry_is_made_again(cohort, entry, name, content):
    pet = np.array(entry.load("pet"))
    assert is_whole(entry.folder)
    (entry.folder / name).unlink()
    if content is not None:
        (entry.folder / name).write_bytes(content)
    assert not is_whole(entry.folder)
    again = prepare_case(cohort[0], FINE, entry.folder.parents[1])
    assert is_whole(again.folder)
    np.testing.assert_array_equal(again.load("pet"), pet)
