"""The digest of a prepared data set follows its voxels, and neither their place on disk nor their order."""

import json
import shutil

import numpy as np
import pytest
from volumes import lesions, write_volume

from hnseg.data.cache import StageVolume
from hnseg.data.prepare import digest_volumes


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
