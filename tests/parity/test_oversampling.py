"""Which samples are forced onto foreground, and where patches are cut, against nnU-Net's data loader.

One difference is on purpose, and tried in tests/data/test_dataset.py: nnU-Net draws cases with
replacement, so that in an epoch some are never seen; hnseg goes through them in shuffled rounds.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from draws import same_frequencies, seed
from mixes import transform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from volumes import numbered

from hnseg.card import InputSpec
from hnseg.data.augment import Compose, RandomAffine
from hnseg.data.dataset import PatchDataset
from hnseg.data.patch import Patch, Shape, foreground_voxel, sample_patch

CLASSES = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=False)
SHARE = 0.33  # nnUNetTrainer.oversample_foreground_percent
VOLUME, SIZE = (14, 11, 9), (7, 6, 5)


def loader(size: Shape, around: Shape, batch_size: int = 2) -> nnUNetDataLoader:
    cases = SimpleNamespace(identifiers=["A"])
    return nnUNetDataLoader(cases, batch_size, around, size, CLASSES, oversample_foreground_percent=SHARE)


def labels() -> np.ndarray:
    """Three voxels of class 1, one of class 2 (z, y, x), near the borders and in the middle."""
    label = np.zeros(VOLUME, np.uint8)
    for z, y, x in ((0, 1, 4), (7, 5, 4), (13, 10, 8)):
        label[z, y, x] = 1
    label[12, 2, 7] = 2
    return label


def locations(label: np.ndarray) -> dict[int, np.ndarray]:
    """nnU-Net's class_locations: (channel, z, y, x) of each class's voxels."""
    return {value: np.argwhere(label[None] == value) for value in (1, 2)}


@pytest.mark.parametrize("batch_size", range(1, 13))
def test_the_same_samples_of_a_batch_are_forced(batch_size):
    reference = loader(SIZE, SIZE, batch_size)
    expected = [reference._oversample_last_XX_percent(place) for place in range(batch_size)]

    def forced(**options):
        data = PatchDataset([], InputSpec(), SIZE, batch_size, None, 0, **options)
        return [place >= data.unforced for place in range(batch_size)]

    assert forced() == expected
    assert forced(foreground=0.75) != expected


def nnunet_starts(around: Shape, forced: bool, volume: Shape = VOLUME, draws: int = 1500) -> list[tuple]:
    seed(0)
    reference, label = loader(SIZE, around), labels()
    boxes = (reference.get_bbox(volume, forced, locations(label)) for _ in range(draws))
    return [tuple(int(i) for i in low) for low, _ in boxes]


def our_starts(
    around: Shape, forced: bool, volume: Shape = VOLUME, draws: int = 1500, **options
) -> list[tuple]:
    rng, label = np.random.default_rng(1), torch.from_numpy(labels())
    starts = []
    for _ in range(draws):
        voxel = foreground_voxel(label, rng) if forced else None
        starts.append(sample_patch(volume, SIZE, rng, around=around, voxel=voxel, **options).start)
    return starts


SURROUNDINGS = RandomAffine(smallest_scale=0.85).surroundings(SIZE)
AROUNDS = [SIZE, (11, 10, 8), SURROUNDINGS]


@pytest.mark.parametrize("around", AROUNDS)
@pytest.mark.parametrize("volume", [VOLUME, (14, 5, 9), (3, 3, 3)])
def test_unforced_patches_are_placed_by_nnunets_law(around, volume):
    reference = nnunet_starts(around, False, volume)
    ours = our_starts(around, False, volume)
    for axis in range(3):
        assert {start[axis] for start in ours} == {start[axis] for start in reference}
        column = [[start[axis] for start in starts] for starts in (ours, reference)]
        assert same_frequencies(*column)
    if volume == VOLUME:
        smaller = our_starts(around, False, tuple(n - 1 for n in volume))
        assert not same_frequencies([s[0] for s in smaller], [s[0] for s in reference])


@pytest.mark.parametrize("around", AROUNDS)
def test_forced_patches_choose_class_voxel_and_place_by_nnunets_law(around):
    reference = nnunet_starts(around, True)
    assert same_frequencies(our_starts(around, True, overhang=True), reference)
    # nnU-Net's forced patches may reach past the volume's end: bounded there, they are others.
    assert not same_frequencies(our_starts(around, True), reference)


def test_a_case_without_foreground_is_placed_like_an_unforced_one():
    empty = torch.zeros(VOLUME, dtype=torch.uint8)
    assert foreground_voxel(empty, np.random.default_rng(0)) is None
    nothing = {1: np.zeros((0, 4), int), 2: np.zeros((0, 4), int)}
    low, _ = loader(SIZE, SIZE).get_bbox(VOLUME, True, nothing)
    assert all(0 <= a <= n - m for a, n, m in zip(low, VOLUME, SIZE, strict=True))


def test_training_samples_are_patches_that_nnunet_would_cut(tmp_path):
    """Through the data set and nnU-Net's mix: each sample shows voxels of one of nnU-Net's places."""
    volume = numbered(tmp_path, VOLUME, (0, 0, 0))
    np.save(volume.folder / "label.npy", labels())
    mix = Compose({"affine": transform("nnunet", "affine", p_rotation=0, p_scaling=0)})
    data = PatchDataset([volume], InputSpec(pet="suv", pet_upper=1e6), SIZE, 2, mix, seed=0)
    numbers = torch.arange(np.prod(VOLUME)).reshape(1, *VOLUME)
    for forced in (False, True):
        places = set(nnunet_starts(SURROUNDINGS, forced, draws=4000))
        patches = {
            tuple(Patch(SIZE, SURROUNDINGS, start).cut(numbers).flatten().tolist()) for start in places
        }
        samples = [data[number]["image"][1].double() * 1e6 for number in range(int(forced), 120, 2)]
        ours = {tuple(sample.round().long().flatten().tolist()) for sample in samples}
        assert ours <= patches
        assert len(ours) == 4 if forced else len(ours) > 30
