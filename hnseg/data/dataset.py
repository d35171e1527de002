"""Cached volumes → TorchIO subjects: training patches, and whole ROIs for validation; both augmented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torchio as tio
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, default_collate

from hnseg.data.augment import Compose, RandomPatchAffine
from hnseg.data.cache import StageVolume
from hnseg.data.intensity import InputSpec, network_input
from hnseg.data.patch import Patch, Shape, foreground_voxel, sample_patch

Sample = dict[str, Any]


def sample_of(subject: tio.Subject, case_id: str) -> Sample:
    """What a network is trained on: `image` (C, z, y, x) float, `label` (z, y, x) long, `case_id`."""
    return {"image": network_input(subject), "label": subject["label"].data[0].long(), "case_id": case_id}


def augmented(augment: tio.Transform, subject: tio.Subject, seed: int, case_id: str) -> Sample:
    """A sample after the mix, drawn from `seed`."""
    with seeded(seed):
        return sample_of(augment(subject), case_id)


def postponed(subject: tio.Subject, seed: int, case_id: str) -> Sample:
    """What `augmented` needs, as tensors and numbers that can be sent to a device.

    Args:
        subject: With `image` and `label`, and perhaps the `patch` that the mix will cut: then only what it
            may show is taken.
        seed: Of the mix.
        case_id: The case.
    """
    image, label, patch = subject["image"].data, subject["label"].data, subject.get("patch")
    if patch is not None:
        image, label = (patch.surroundings(data)[0].contiguous() for data in (image, label))
        patch = (patch.size, patch.around, tuple(min(start, 0) for start in patch.start))
    return {
        "image": image,
        "label": label,
        "classes": int(label.max()),  # so that nobody has to ask the device
        "patch": patch,
        "seed": seed,
        "case_id": case_id,
    }


def augment_batch(augment: tio.Transform, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Does on their device what was postponed, and puts the samples together to a batch."""
    return default_collate([_resumed(augment, **sample) for sample in samples])


def _resumed(
    augment: tio.Transform, image: Any, label: Any, classes: int, patch: Any, **sample: Any
) -> Sample:
    labels = tio.LabelMap(tensor=label, classes=classes)
    subject = tio.Subject(image=tio.ScalarImage(tensor=image), label=labels)
    if patch is not None:
        subject["patch"] = Patch(*patch)
    return augmented(augment, subject, **sample)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the processor's generator, which transforms draw from, and leaves it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


class Shard(NamedTuple):
    """What one of several processes takes of something: the `rank`-th of `size` equal parts."""

    rank: int = 0
    size: int = 1


WHOLE = Shard()


class EpochSampler(Sampler[int]):
    """Sample numbers that go on from epoch to epoch, so that every number is drawn only once.

    A sample's case, position and augmentation follow from its number and the seed alone, whichever
    worker or process makes it. Lightning calls `set_epoch`.

    Args:
        samples: Of an epoch, over all processes.
        batch: Samples that go through the network together, over all processes, which each take their part
            of every batch; not needed of one process.
        shard: This process's.
    """

    def __init__(self, samples: int, batch: int = 1, shard: Shard = WHOLE) -> None:
        self.samples, self.batch, self.shard, self.epoch = samples, batch, shard, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        first, (rank, size) = self.epoch * self.samples, self.shard
        mine = self.batch // size
        for start in range(first + rank * mine, first + self.samples, self.batch):
            yield from range(start, start + mine)

    def __len__(self) -> int:
        return self.samples // self.shard.size


class PatchDataset(Dataset[dict[str, Any]]):
    """Training patches, numbered without end.

    The order is: jittered ROI → scan transform → intensity chain → patch → augmentation. A mix that
    begins with nnU-Net's `RandomPatchAffine` cuts the patch itself, from more than the patch, and places
    it as nnU-Net does; with any other mix, patches stay inside the (padded) ROI. No queue is needed: one
    case is read for one patch either way.

    Args:
        volumes: Cached cases of the training folds.
        spec: The input chain.
        patch: Patch shape (z, y, x).
        batch_size: Samples of a batch, among which nnU-Net's rule forces the last ones onto
            foreground: a random voxel of a random class present is in the patch's middle.
        augment: Transform of subjects with `image` and `label`, or None. A mix for another device is left
            to `hnseg.data.augmented.augment_batch`.
        seed: Of cases, positions and augmentation.
        foreground: Share of each batch that is forced onto foreground, rounded as nnU-Net does
            (0.33: 1 of 2, 1 of 4, none of 1).
        jitter: Shift the ROI at random within the cached margin.
        scan_augment: Transform of subjects with `ct` in HU, `pet` in SUV (where the stage sees it) and
            `label`, before the intensity chain, or None.
    """

    def __init__(
        self,
        volumes: Sequence[StageVolume],
        spec: InputSpec,
        patch: Shape,
        batch_size: int,
        augment: tio.Transform | None,
        seed: int,
        foreground: float = 0.33,
        jitter: bool = False,
        scan_augment: tio.Transform | None = None,
    ) -> None:
        self.volumes, self.patch, self.augment, self.seed = list(volumes), patch, augment, seed
        self.batch_size, self.jitter, self.scan_augment = batch_size, jitter, scan_augment
        self.unforced = round(batch_size * (1 - foreground))
        self.transform = spec.transform()
        self.postpones = isinstance(augment, Compose) and augment.device == "cuda"
        first = augment[0] if isinstance(augment, tio.Compose) and len(augment) else augment
        self.around = first.around(patch) if isinstance(first, RandomPatchAffine) else None

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, number])
        volume = self.volumes[self._case(number)]
        shift = [int(rng.integers(0, 2 * m + 1)) if self.jitter else m for m in volume.margin]
        subject = roi_subject(volume, shift)
        if self.scan_augment is not None:
            with seeded(int(rng.integers(2**62))):
                subject = self.scan_augment(subject)
        subject = self.transform(subject)
        # Fixed by the sample's place in its batch, as nnU-Net does, not drawn.
        forced = number % self.batch_size >= self.unforced
        subject = self._placed(subject, forced, rng)
        if self.augment is None:
            return sample_of(subject, volume.case_id)
        seed = int(rng.integers(2**62))
        if self.postpones:
            return postponed(subject, seed, volume.case_id)
        return augmented(self.augment, subject, seed, volume.case_id)

    def _case(self, number: int) -> int:
        """Cases in shuffled rounds: each is seen once before any is seen again."""
        turn, place = divmod(number, len(self.volumes))
        return int(np.random.default_rng([self.seed, turn]).permutation(len(self.volumes))[place])

    def _placed(self, subject: tio.Subject, forced: bool, rng: np.random.Generator) -> tio.Subject:
        """The subject cut, or whole with the `patch` that the mix will cut."""
        image, label = subject["image"].data, subject["label"].data
        if self.around is None and image.shape[1:] == self.patch:
            return subject
        voxel = foreground_voxel(label[0], rng) if forced else None
        how: dict[str, Any] = {"around": self.around, "voxel": voxel, "overhang": self.around is not None}
        patch = sample_patch(image.shape[1:], self.patch, rng, **how)
        if self.around is not None:
            subject["patch"] = patch
            return subject
        images = subject.get_images_dict(intensity_only=False)
        return tio.Subject({name: type(one)(tensor=patch.cut(one.data)) for name, one in images.items()})


class VolumeDataset(Dataset[dict[str, Any]]):
    """Whole ROIs in fixed order, without augmentation: validation and test.

    Args:
        volumes: Cached cases.
        spec: The input chain.
        classes: Number of foreground classes.
    """

    def __init__(self, volumes: Sequence[StageVolume], spec: InputSpec, classes: int) -> None:
        self.volumes, self.transform, self.classes = list(volumes), spec.transform(), classes

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        volume = self.volumes[index]
        subject = self.transform(roi_subject(volume, volume.margin))
        outside = torch.tensor(volume.voxels_outside_roi(self.classes))
        return sample_of(subject, volume.case_id) | {"voxels_outside_roi": outside}


def roi_subject(volume: StageVolume, start: Sequence[int]) -> tio.Subject:
    """The ROI of a cached volume that begins at voxel `start` (z, y, x), as `ct`, `pet` where the stage sees
    it, and `label`."""
    arrays = {name: volume.load(name) for name in volume.arrays}
    size = [n - 2 * m for n, m in zip(arrays["label"].shape, volume.margin, strict=True)]
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    label = tio.LabelMap(tensor=_tensor(arrays.pop("label")[box], np.uint8))
    images = {name: tio.ScalarImage(tensor=_tensor(array[box])) for name, array in arrays.items()}
    return tio.Subject(**images, label=label)


def _tensor(array: NDArray[Any], dtype: type = np.float32) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype))[None]
