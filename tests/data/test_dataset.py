"""A sample follows from its number and the seed; nnU-Net's share of each batch holds foreground."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mixes import mix
from torch.utils.data import DataLoader
from volumes import lesions, numbered, write_volume

from hnseg.card import InputSpec, Normalise
from hnseg.data.augment import Compose, RandomAffine, RandomFlip, RandomNoise
from hnseg.data.cache import StageVolume
from hnseg.data.dataset import EpochSampler, PatchDataset, Shard, VolumeDataset, augment_batch

SPEC = InputSpec(normalise=(Normalise("zscore"),) * 2)
# PET as it is, but for a factor that `place` takes off again.
PLACE = InputSpec(pet="suv", pet_upper=1e6)
SHAPE = (12, 14, 16)


@pytest.fixture
def volumes(tmp_path) -> list[StageVolume]:
    return [write_volume(tmp_path, f"A-{n}", lesions(SHAPE, n), seed=n) for n in range(5)]


def patches(volumes, patch=(6, 7, 8), batch_size=2, augment=None, seed=0, **options) -> PatchDataset:
    return PatchDataset(volumes, options.pop("spec", SPEC), patch, batch_size, augment, seed, **options)


def same(a: dict, b: dict) -> bool:
    return (
        a["case_id"] == b["case_id"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["label"], b["label"])
    )


def place(sample: dict, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """First voxel of a patch cut from a `numbered` volume of `shape`, (z, y, x)."""
    number = round(sample["image"][1, 0, 0, 0].item() * PLACE.pet_upper)
    return tuple(int(i) for i in np.unravel_index(number, shape))


def test_a_sample_follows_from_its_number_whatever_was_drawn_before(volumes):
    augment = Compose({"affine": RandomAffine(), "noise": RandomNoise()})
    data = patches(volumes, augment=augment)
    forwards = [data[n] for n in range(8)]
    torch.manual_seed(99)
    np.random.seed(99)
    backwards = [patches(volumes, augment=augment)[n] for n in reversed(range(8))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    other = [patches(volumes, augment=augment, seed=1)[n] for n in range(8)]
    assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(forwards, other, strict=True))


@pytest.mark.parametrize("name", ["nnunet", "auto3dseg", "light"])
def test_the_device_makes_the_batches_that_the_loaders_make(volumes, name):
    """Bit for bit on a processor, coordinates included."""
    spec = replace(SPEC, coordinates=True)
    batches = []
    for device in ("cpu", "cuda"):
        augment = mix(name, device)
        for transform in augment.transforms.values():  # often enough to be seen
            transform.p = max(transform.p, 0.5)
        data = patches(volumes, augment=augment, spec=spec)
        collate = list if data.augments_on_device else None
        loader = DataLoader(data, 2, sampler=EpochSampler(24), collate_fn=collate)
        batches.append([augment_batch(augment, b) if data.augments_on_device else b for b in loader])
    for one, other in zip(*batches, strict=True):
        assert one["case_id"] == other["case_id"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_workers_make_the_same_batches_as_the_training_process(volumes):
    augment = Compose({"mirror": RandomFlip()})
    alone, shared = (
        list(DataLoader(patches(volumes, augment=augment), 2, sampler=EpochSampler(6), num_workers=workers))
        for workers in (0, 2)
    )
    for a, b in zip(alone, shared, strict=True):
        assert a["case_id"] == b["case_id"]
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
        torch.testing.assert_close(a["label"], b["label"], rtol=0, atol=0)


@pytest.mark.parametrize(("batch_size", "forced"), [(1, 0), (2, 1), (3, 1), (4, 1), (6, 2)])
def test_the_last_samples_of_a_batch_hold_foreground(volumes, batch_size, forced):
    # nnU-Net: sample i is forced unless i < round(batch_size * (1 - 0.33)).
    assert forced == batch_size - round(batch_size * (1 - 0.33))
    data = patches(volumes, patch=(3, 3, 3), batch_size=batch_size)
    slots = [[] for _ in range(batch_size)]
    for number in range(30 * batch_size):
        slots[number % batch_size].append(bool(data[number]["label"].any()))
    assert all(all(slot) for slot in slots[batch_size - forced :])
    # A patch of 27 of 2688 voxels meets one of some ten by chance about once in ten times.
    assert all(np.mean(slot) < 0.5 for slot in slots[: batch_size - forced])


def test_jitter_shifts_the_roi_within_the_margin_and_no_further(tmp_path):
    shape, margin = (9, 12, 15), (1, 2, 3)
    volume = numbered(tmp_path, shape, margin)
    roi = tuple(n - 2 * m for n, m in zip(shape, margin, strict=True))
    data = patches([volume], patch=roi, batch_size=1, spec=PLACE, jitter=True)
    starts = {place(data[number], shape) for number in range(700)}
    assert starts == {(z, y, x) for z in range(3) for y in range(5) for x in range(7)}
    still = patches([volume], patch=roi, batch_size=1, spec=PLACE)
    assert {place(still[number], shape) for number in range(20)} == {margin}
    assert place(VolumeDataset([volume], PLACE, 2)[0], shape) == margin


def test_every_case_is_seen_once_before_any_is_seen_again(volumes):
    data = patches(volumes)
    orders = [[data[number]["case_id"] for number in range(5 * turn, 5 * turn + 5)] for turn in range(6)]
    assert all(sorted(order) == [v.case_id for v in volumes] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize(("batch", "accumulate", "size"), [(4, 1, 2), (4, 2, 2), (8, 2, 4), (3, 1, 3)])
def test_processes_share_every_part_of_every_batch(batch, accumulate, size):
    """Read side by side, what they take is what one process takes, each part of a batch at its time."""
    samples, part = 3 * batch, batch // accumulate
    shards = [EpochSampler(samples, part, Shard(rank, size)) for rank in range(size)]
    for sampler in shards:
        sampler.set_epoch(2)
    taken = [list(sampler) for sampler in shards]
    assert [len(sampler) for sampler in shards] == [len(numbers) for numbers in taken]
    each = part // size
    for step in range(samples // part):
        together = [n for numbers in taken for n in numbers[step * each : (step + 1) * each]]
        first = 2 * samples + step * part
        assert together == list(range(first, first + part))


def test_what_reaches_past_the_volume_is_empty(tmp_path):
    """nnU-Net's mix keeps a forced voxel in the middle at the volume's end; other mixes stay inside."""
    label = np.zeros((9, 9, 9), np.uint8)
    label[8, 8, 8] = 1
    volume = write_volume(tmp_path, "A", label)
    np.save(volume.folder / "pet.npy", np.ones((9, 9, 9), np.float32))
    mix = Compose({"affine": RandomAffine(p=0, smallest_scale=0.85)})
    sample = patches([volume], patch=(4, 4, 4), augment=mix, spec=InputSpec(pet="suv", pet_upper=2))[1]
    assert sample["label"].nonzero().tolist() == [[2, 2, 2]]
    inside = torch.zeros((4, 4, 4))
    inside[:3, :3, :3] = 0.5
    torch.testing.assert_close(sample["image"][1], inside)
    assert patches([volume], patch=(4, 4, 4))[1]["label"].nonzero().tolist() == [[3, 3, 3]]


def test_image_and_label_are_cut_at_the_same_place(tmp_path):
    volume = numbered(tmp_path, SHAPE, (0, 0, 0))
    np.save(volume.folder / "label.npy", (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3).astype(np.uint8))
    data = patches([volume], patch=(5, 5, 5), batch_size=4, spec=PLACE)
    for number in range(12):
        sample = data[number]
        voxels = np.rint(sample["image"][1].numpy() * PLACE.pet_upper).astype(int)
        np.testing.assert_array_equal(sample["label"], voxels % 3)
