"""Entries of the cache: whole or not there, for every process and user, and never changed under a reader."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volumes import lesions, write_volume

from hnseg.card import Stage
from hnseg.data.cache import StageVolume, is_whole
from hnseg.data.prepare import digest_volumes, prepare_case
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
        monkeypatch.setattr(np, "save", cut_off)
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


@pytest.fixture
def volumes(tmp_path):
    return [write_volume(tmp_path / "cache", f"A-{n}", lesions((4, 5, 6), n), seed=n) for n in range(2)]


def copied(volume: StageVolume, tmp_path, name: str = "elsewhere") -> StageVolume:
    target = tmp_path / name / volume.case_id
    shutil.copytree(volume.folder, target)
    return StageVolume(volume.case_id, target)


def test_the_same_volumes_have_one_digest_wherever_they_lie(volumes, tmp_path):
    copies = [copied(volume, tmp_path) for volume in reversed(volumes)]
    assert digest_volumes(copies) == digest_volumes(volumes)
    assert digest_volumes(volumes) == digest_volumes(volumes)  # kept, the second time


@pytest.mark.parametrize("name", ["ct", "pet", "label"])
def test_a_voxel_changes_it(volumes, tmp_path, name):
    other = copied(volumes[1], tmp_path)
    array = np.load(other.folder / f"{name}.npy")
    array[1, 2, 3] += 1
    np.save(other.folder / f"{name}.npy", array)
    assert digest_volumes([volumes[0], other]) != digest_volumes(volumes)


def test_so_do_another_place_in_the_patient_another_case_and_one_less(volumes, tmp_path):
    moved = copied(volumes[1], tmp_path)
    meta = json.loads((moved.folder / "meta.json").read_text())
    meta["grid"]["origin"] = [0, 0, 3]
    (moved.folder / "meta.json").write_text(json.dumps(meta))
    renamed = StageVolume("B-1", volumes[1].folder)
    sets = [volumes, [volumes[0], moved], [volumes[0], renamed], volumes[:1]]
    assert len({digest_volumes(each) for each in sets}) == len(sets)
