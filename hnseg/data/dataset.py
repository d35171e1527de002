"""Cached volumes → training patches, augmented, and whole ROIs for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torchio as tio
from torch.utils.data import Dataset, Sampler, default_collate

from hnseg.card import InputSpec
from hnseg.data.augment import Compose, RandomAffine, Sample, Streams
from hnseg.data.cache import StageVolume
from hnseg.data.intensity import input_transform, network_input, to_subject
from hnseg.data.patch import Shape, coordinate_channels, follow, foreground_voxel, sample_patch
from hnseg.data.resample import MODALITIES


def roi_subject(volume: StageVolume, start: Sequence[int]) -> tio.Subject:
    """`ct` (HU), perhaps `pet` (SUV) and `label` of the ROI that begins at voxel `start` (z, y, x)."""
    arrays = {name: volume.load(name) for name in volume.arrays}
    spans = zip(start, arrays["label"].shape, volume.margin, strict=True)
    box = tuple(slice(a, a + n - 2 * m) for a, n, m in spans)
    label = torch.from_numpy(np.array(arrays.pop("label")[box], np.uint8))
    images = {name: torch.from_numpy(array[box].astype(np.float32)) for name, array in arrays.items()}
    return to_subject(images, label)


def to_item(sample: Sample) -> dict[str, Any]:
    """`image` (C, z, y, x) float32, `label` (z, y, x) uint8 and `case_id`, as networks are trained on."""
    image = sample.image
    if sample.position is not None:
        coordinates = coordinate_channels(sample.position, image.shape[1:], image.device)
        image = torch.cat([image, coordinates])
    return {"image": image, "label": sample.label, "case_id": sample.case_id}


def augment_scan(augment: Compose, subject: tio.Subject, case_id: str, streams: Streams) -> None:
    """Augments CT and PET of a subject, and its label."""
    names = [name for name in MODALITIES if name in subject]
    scan, label = torch.cat([subject[name].data for name in names]), subject["label"].data[0]
    sample = Sample(case_id, scan, label, streams, int(label.max()))
    augment([sample], scope="scan_augment")
    for name, channel in zip(names, sample.image, strict=True):
        subject[name].set_data(channel[None])
    subject["label"].set_data(sample.label[None])


def augment_batch(augment: Compose, samples: Sequence[Sample]) -> dict[str, Any]:
    """Augments samples on the device where they lie, and collates them."""
    augment(samples)
    batch: dict[str, Any] = default_collate([to_item(sample) for sample in samples])
    return batch


class Shard(NamedTuple):
    """The `rank`-th of `size` equal parts of a batch, for one of several processes."""

    rank: int = 0
    size: int = 1


WHOLE = Shard()


class EpochSampler(Sampler[int]):
    """Sample numbers that go on from epoch to epoch, so that every number is drawn only once.

    A sample's case, position and augmentation follow from its number and the seed alone, whichever worker or
    process makes it. Each process takes its shard of every batch. Lightning calls `set_epoch`.

    Args:
        samples: Of an epoch, over all processes.
        batch: Samples that go through the network together, over all processes.
        shard: Of this process.
    """

    def __init__(self, samples: int, batch: int = 1, shard: Shard = WHOLE) -> None:
        self.samples, self.batch, self.shard, self.epoch = samples, batch, shard, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        first, (rank, size) = self.epoch * self.samples, self.shard
        mine = self.batch // size
        for start in range(first + rank * mine, first + self.samples, self.batch):
            yield from range(start, start + mine)

    def __len__(self) -> int:
        return self.samples // self.shard.size


class PatchDataset(Dataset[dict[str, Any] | Sample]):
    """Training patches, numbered without end.

    The order is: jittered ROI → scan transforms → intensity chain → patch → augmentation. Each of these draws
    from a random stream of its own (`Streams`). As in nnU-Net, an affine transform may come first that cuts
    the patch itself, out of larger surroundings in which it turns the patch; then patches are placed as by
    nnU-Net, and may overhang the ROI. Otherwise they stay inside the (padded) ROI.

    Args:
        volumes: Cached cases of the training folds.
        spec: The input chain.
        patch: Patch shape (z, y, x).
        batch_size: Samples of a batch, the last of which are forced onto foreground by nnU-Net's rule:
            a random voxel of a random class present is in the patch's middle.
        augment: Transforms of patches, or None. Those for another device are left to `augment_batch`.
        seed: Of cases, positions and augmentation.
        foreground: Part of each batch that is forced onto foreground, rounded as nnU-Net does
            (0.33: 1 of 2, 1 of 4, none of 1).
        jitter: Shift the ROI at random within the cached margin.
        scan_augment: Transforms of scans (CT in HU, PET in SUV) before the intensity chain, or None.
    """

    def __init__(
        self,
        volumes: Sequence[StageVolume],
        spec: InputSpec,
        patch: Shape,
        batch_size: int,
        augment: Compose | None,
        seed: int,
        foreground: float = 0.33,
        jitter: bool = False,
        scan_augment: Compose | None = None,
    ) -> None:
        self.volumes, self.spec, self.transform = list(volumes), spec, input_transform(spec)
        self.patch, self.augment, self.seed = patch, augment, seed
        self.batch_size, self.jitter, self.scan_augment = batch_size, jitter, scan_augment
        self.unforced = round(batch_size * (1 - foreground))
        first = next(iter(augment.transforms.values()), None) if augment else None
        self.surroundings = first.surroundings(patch) if isinstance(first, RandomAffine) else None

    @property
    def augments_on_device(self) -> bool:
        """Whether samples are left for `augment_batch`."""
        return self.augment is not None and self.augment.device == "cuda"

    def __getitem__(self, number: int) -> dict[str, Any] | Sample:
        streams, volume = Streams(self.seed, number), self.volumes[self._case(number)]
        start = np.asarray(volume.margin)
        if self.jitter:
            start = streams("jitter").integers(0, 2 * start + 1)
        subject = roi_subject(volume, start.tolist())
        if self.scan_augment is not None:
            augment_scan(self.scan_augment, subject, volume.case_id, streams)
        subject = self.transform(subject)
        image, label = subject["image"], subject["label"].data[0]
        sample = Sample(volume.case_id, image.data, label, streams, int(label.max()))
        if self.spec.coordinates:
            sample.position = image.affine[:3]
        self._cut(sample, forced=number % self.batch_size >= self.unforced)
        if self.augment is None or self.augments_on_device:
            return sample if self.augments_on_device else to_item(sample)
        self.augment([sample])
        return to_item(sample)

    def _case(self, number: int) -> int:
        """Cases in shuffled rounds: each is seen once before any is seen again."""
        turn, index = divmod(number, len(self.volumes))
        return int(Streams(self.seed, turn)("cases").permutation(len(self.volumes))[index])

    def _cut(self, sample: Sample, forced: bool) -> None:
        """Cuts a patch, or the surroundings that the augmentation will cut it from, out of the whole ROI."""
        shape, size, around = sample.label.shape, self.patch, self.surroundings
        if around is None and shape == size:
            return
        rng = sample.streams("patch")
        voxel = foreground_voxel(sample.label, rng) if forced else None
        patch = sample_patch(shape, size, rng, around=around, voxel=voxel, overhang=around is not None)
        if around is None:
            first: Sequence[int] = patch.first
            image, label = patch.cut(sample.image), patch.cut(sample.label)
        else:
            first = [max(start, 0) for start in patch.start]
            image, label = (patch.surroundings(x)[0].contiguous() for x in (sample.image, sample.label))
            sample.patch = patch.within(first)
        sample.image, sample.label = image, label
        if sample.position is not None:
            sample.position = follow(sample.position, np.eye(3), first)


class VolumeDataset(Dataset[dict[str, Any]]):
    """Whole ROIs in fixed order, without augmentation: validation and test."""

    def __init__(self, volumes: Sequence[StageVolume], spec: InputSpec, classes: int) -> None:
        self.volumes, self.spec, self.classes = list(volumes), spec, classes
        self.transform = input_transform(spec)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        volume = self.volumes[index]
        subject = self.transform(roi_subject(volume, volume.margin))
        return {
            "image": network_input(self.spec, subject),
            "label": subject["label"].data[0],
            "case_id": volume.case_id,
            "voxels_outside_roi": torch.tensor(volume.voxels_outside_roi(self.classes)),
        }
