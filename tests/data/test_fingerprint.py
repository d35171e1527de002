"""Constants of the training fold: worked by hand, cached, and hashed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from volumes import write_volume

from hnseg.card import InputSpec, Normalise
from hnseg.data.cache import StageVolume
from hnseg.data.fingerprint import Fingerprint, needs_fingerprint
from hnseg.errors import HnsegError

# HU from -100 to 100 become 0 to 1; a SUV stays one.
SPEC = InputSpec(ct_window=(-100.0, 100.0), ct_range=(0.0, 1.0), pet="suv", pet_upper=100.0)


@pytest.fixture
def volumes(tmp_path):
    """Two cases of one class: foreground PET of 10 in 8 voxels, and of 20 and 40 in 2; 0 elsewhere."""
    made = []
    for name, values in (("A-1", [10] * 8), ("A-2", [20, 40])):
        label = np.zeros((4, 4, 4), np.uint8)
        label.ravel()[: len(values)] = 1
        volume = write_volume(tmp_path / "volumes", name, label)
        pet = np.zeros((4, 4, 4), np.float32)
        pet.ravel()[: len(values)] = values
        np.save(volume.folder / "pet.npy", pet)
        np.save(volume.folder / "ct.npy", np.full((4, 4, 4), 0 if name == "A-1" else 50, np.int16))
        made.append(volume)
    return made


def test_constants_by_hand(volumes, tmp_path):
    ct, pet = Fingerprint.measure(volumes, SPEC, tmp_path).channels
    # Each case weighs the same, however few voxels it has: mean of (0.1) and (0.2, 0.4).
    lower, upper, mean, std = pet.pooled
    assert (lower, upper) == pytest.approx((0.1, 0.4))
    assert mean == pytest.approx(0.2)
    assert std == pytest.approx(np.sqrt((2 * 0.1**2 + 0.0**2 + 0.2**2) / 4))
    # Auto3DSeg: mean over cases of each case's percentiles (0.2 + 0.5 % and 99.5 % of the way to 0.4).
    assert pet.per_case == pytest.approx(((0.1 + 0.201) / 2, (0.1 + 0.399) / 2))
    # Over all voxels: 8 x 0.1 and 0.2 + 0.4 of 128.
    assert pet.overall[0] == pytest.approx(1.4 / 128)
    assert pet.overall[1] == pytest.approx(np.sqrt((8 * 0.01 + 0.04 + 0.16) / 128 - (1.4 / 128) ** 2))
    assert ct.overall == pytest.approx((0.625, 0.125))


def test_the_chain_takes_what_its_schemes_need(volumes, tmp_path):
    spec = replace(SPEC, normalise=(Normalise("ct"), Normalise("cohort")))
    assert needs_fingerprint(spec)
    fingerprint = Fingerprint.measure(volumes, spec, tmp_path)
    filled = fingerprint.fill(spec)
    assert not needs_fingerprint(filled)
    assert filled.normalise[0].mean == fingerprint.channels[0].pooled[2]
    assert (filled.normalise[1].mean, filled.normalise[1].std) == fingerprint.channels[1].overall
    assert filled.normalise[1].lower is None
    assert not needs_fingerprint(replace(SPEC, normalise=(Normalise("zscore"), Normalise("sigmoid"))))


def test_it_is_measured_once_for_the_same_cases_and_scaling(volumes, tmp_path):
    first = Fingerprint.measure(volumes, SPEC, tmp_path)
    np.save(volumes[0].folder / "pet.npy", np.zeros((4, 4, 4), np.float32))  # entries never change: not read
    assert Fingerprint.measure(volumes[::-1], SPEC, tmp_path) == first
    (kept,) = (tmp_path / "fingerprints").iterdir()
    for damaged in ("", "[]", '{"channels": [1]}'):
        kept.write_text(damaged)
        assert Fingerprint.measure(volumes, SPEC, tmp_path) != first
        assert Fingerprint.model_validate_json(kept.read_text()).hash != first.hash
    # Another fold, another scaling or a case prepared anew is another fingerprint.
    assert Fingerprint.measure(volumes[1:], SPEC, tmp_path).hash != first.hash
    assert Fingerprint.measure(volumes, replace(SPEC, pet_upper=50.0), tmp_path).hash != first.hash
    changed = StageVolume("A-1", shutil.copytree(volumes[0].folder, tmp_path / "another entry"))
    np.save(changed.folder / "pet.npy", np.full((4, 4, 4), 3, np.float32))
    assert Fingerprint.measure([changed, *volumes[1:]], SPEC, tmp_path) != first


def test_a_fold_without_a_lesion_is_refused(tmp_path):
    empty = write_volume(tmp_path, "A-1", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(HnsegError, match="no training case has a labelled voxel"):
        Fingerprint.measure([empty], SPEC, tmp_path)
