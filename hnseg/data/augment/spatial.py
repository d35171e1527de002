"""Augmentation of geometry: rotation and scaling, mirroring, misaligned PET, scans cut at the head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hnseg.data.augment.transform import Sample, Transform
from hnseg.data.patch import Patch, Shape, follow


class SpatialTransform(Transform):
    """Moves voxels: samples may differ in size, and are changed one by one; None leaves a sample as it is."""

    def apply(self, samples: Sequence[Sample], parameters: Sequence[Any]) -> None:
        for sample, given in zip(samples, parameters, strict=True):
            if given is not None:
                self.move(sample, given)

    @abstractmethod
    def move(self, sample: Sample, parameters: Any) -> None:
        """Changes one sample."""


class Affine(NamedTuple):
    """Angles about z, y and x, radians, and factors along them; above 1 the anatomy becomes smaller."""

    angles: NDArray[np.float64]
    factors: NDArray[np.float64]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3): from offsets in the output to offsets in the input, both from the middle (z, y, x)."""
        return rotation(self.angles) @ np.diag(self.factors)

    @property
    def is_identity(self) -> bool:
        return not self.angles.any() and bool((self.factors == 1).all())


@dataclass(kw_only=True)
class RandomAffine(SpatialTransform):
    """Rotates and scales.

    Rotation and scaling come together with probability `p`, and each of them then with its own. As in
    nnU-Net's SpatialTransform, a patch can be turned within its surroundings, so that no corner is empty
    where there was anatomy: then it must be the first transform, and cuts the patch. Otherwise it turns
    what it is given (Auto3DSeg's RandAffined).

    Args:
        p_rotation: Probability of a rotation, once it acts.
        degrees: Angle about each axis, drawn from [-degrees, degrees].
        p_scaling: Probability of a scaling, once it acts.
        scaling: Range of the factor; above 1 the anatomy becomes smaller.
        isotropic: One factor for all axes, or one for each.
        outside: `zeros`: outside the volume images and labels are 0, and a label is the class with the most
            weight among the eight voxels around (nnU-Net). `border`: the border goes on, and a label is that
            of the nearest voxel (MONAI).
        smallest_scale: Surroundings are made for the largest rotation, and 1 / smallest_scale times larger.
            nnU-Net takes 0.85 whatever `scaling`. None turns the patch alone.
    """

    p_rotation: float = 1.0
    degrees: float = 30.0
    p_scaling: float = 1.0
    scaling: tuple[float, float] = (0.7, 1.4)
    isotropic: bool = True
    outside: Literal["zeros", "border"] = "zeros"
    smallest_scale: float | None = None

    def surroundings(self, size: Shape) -> Shape | None:
        """Shape of the surroundings of a patch, (z, y, x) (nnU-Net's get_patch_size); None without them."""
        if self.smallest_scale is None:
            return None
        turned = [np.abs(size @ rotation(axis * np.deg2rad(self.degrees))) for axis in np.eye(3)]
        largest = np.vstack([np.asarray(size), *turned]).max(axis=0)
        z, y, x = (int(n) for n in largest / self.smallest_scale)
        return z, y, x

    def draw(self, rng: np.random.Generator, channels: int) -> Affine:
        acts = rng.random() < self.p
        turns, scales = rng.random(2) < (self.p_rotation, self.p_scaling)
        angles = np.deg2rad(rng.uniform(-self.degrees, self.degrees, 3))
        factors = np.broadcast_to(rng.uniform(*self.scaling, 1 if self.isotropic else 3), 3)
        return Affine(angles * (acts & turns), np.where(acts & scales, factors, 1.0))

    def move(self, sample: Sample, parameters: Affine) -> None:
        patch = sample.patch or Patch.whole(sample.label.shape)
        sample.patch = None
        if parameters.is_identity:
            sample.image, sample.label = patch.cut(sample.image), patch.cut(sample.label)
            _track(sample, np.eye(3), patch.first)
            return
        matrix = parameters.matrix
        sample.image, sample.label = resample_patch(sample, matrix, patch, self.outside)
        middle = np.asarray(patch.start) + (np.asarray(patch.around) - 1) / 2
        _track(sample, matrix, middle - matrix @ ((np.asarray(patch.size) - 1) / 2))


def _track(sample: Sample, matrix: NDArray[np.float64], first: Sequence[float] | NDArray[np.float64]) -> None:
    """Keeps positions right after a sample's voxel v came to show `matrix @ v + first` of what it was."""
    if sample.position is not None:
        sample.position = follow(sample.position, matrix, first)


def rotation(angles: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrix (3, 3) on column vectors (z, y, x) that turns about z, then y, then x, by radians.

    nnU-Net's order on (z, y, x) arrays, and MONAI's on (x, y, z) ones: both are R_x R_y R_z.
    """
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        plane = np.ix_(*[[(axis + 1) % 3, (axis + 2) % 3]] * 2)
        turn = np.eye(3)
        turn[plane] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = turn @ matrix
    return matrix


def resample_patch(
    sample: Sample, matrix: NDArray[np.float64], patch: Patch, outside: Literal["zeros", "border"]
) -> tuple[Tensor, Tensor]:
    """A patch's image (C, *size) and label (*size), turned and scaled about the middle of its surroundings.

    Args:
        sample: The volume, or the part of it in the surroundings.
        matrix: From offsets in the output to offsets in the volume, both from the middle (z, y, x).
        patch: The patch.
        outside: As for `RandomAffine`; with `zeros`, all beyond the surroundings is outside too.
    """
    image, offset = patch.surroundings(sample.image)
    label, _ = patch.surroundings(sample.label)
    grid = sampling_grid(matrix, patch.size, image.shape[1:], offset, image.device)
    turned = F.grid_sample(image[None], grid, padding_mode=outside, align_corners=False)[0]
    if outside == "border":
        nearest = F.grid_sample(
            label[None, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
        )
        return turned, nearest[0, 0].to(label.dtype)
    classes = torch.arange(1, max(sample.classes, 1) + 1, dtype=label.dtype, device=label.device)
    is_class = (label == classes[:, None, None, None]).float()
    weights = F.grid_sample(is_class[None], grid, align_corners=False)[0]
    weight, index = weights.max(0)  # many times faster than torch's argmax
    background = 1 - weights.sum(0)  # what lies outside is background
    return turned, torch.where(weight > background, index + 1, 0).to(label.dtype)


def sampling_grid(
    matrix: NDArray[np.float64],
    size: Shape,
    source: Sequence[int],
    offset: Sequence[float] | NDArray[np.float64],
    device: torch.device,
) -> Tensor:
    """Where each voxel of an output lies in the source: (1, *size, 3) as x, y, z in [-1, 1], edge to edge.

    Args:
        matrix: From offsets in the output to offsets in the source, both from the middle (z, y, x).
        size: Shape of the output (z, y, x).
        source: Shape of the source (z, y, x).
        offset: What the middle of the output shows, from the middle of the source, voxels (z, y, x).
        device: Of the source.
    """
    half = np.asarray(source) / 2
    linear = matrix * np.asarray(size) / 2 / half[:, None]
    theta = np.column_stack([linear[::-1, ::-1], (np.asarray(offset) / half)[::-1]])
    on_device = torch.from_numpy(theta[None].astype(np.float32)).to(device, non_blocking=True)
    return F.affine_grid(on_device, [1, 1, *size], align_corners=False)


@dataclass(kw_only=True)
class RandomFlip(SpatialTransform):
    """Mirrors along each of `axes` (z, y, x) half of the time, once it acts."""

    axes: Sequence[int] = (0, 1, 2)

    def draw(self, rng: np.random.Generator, channels: int) -> list[int] | None:
        mirrored = (rng.random() < self.p) & (rng.random(3) < 0.5)
        return [axis for axis in self.axes if mirrored[axis]] or None

    def move(self, sample: Sample, parameters: list[int]) -> None:
        signs, first = np.ones(3), np.zeros(3)
        for axis in parameters:
            signs[axis], first[axis] = -1, sample.label.shape[axis] - 1
        sample.image = sample.image.flip([axis + 1 for axis in parameters])
        sample.label = sample.label.flip(parameters)
        _track(sample, np.diag(signs), first)


class Shift(NamedTuple):
    """A rigid movement: angles about z, y and x, radians, and a shift along them, mm."""

    angles: NDArray[np.float64]
    mm: NDArray[np.float64]


@dataclass(kw_only=True)
class RandomMisalignment(SpatialTransform):
    """Shifts and turns PET rigidly about the middle of the ROI; CT and label stay.

    Beyond the ROI the border's values go on. Acts on scans; a stage that sees CT alone stays as it is.

    Args:
        spacing: Voxel size in mm, (x, y, z).
        mm: The shift along each axis is drawn from [-mm, mm].
        degrees: The angle about each axis is drawn from [-degrees, degrees].
    """

    spacing: tuple[float, float, float]
    mm: float = 4.0
    degrees: float = 5.0

    def draw(self, rng: np.random.Generator, channels: int) -> Shift | None:
        acts = rng.random() < self.p
        angles = np.deg2rad(rng.uniform(-self.degrees, self.degrees, 3))
        shift = Shift(angles, rng.uniform(-self.mm, self.mm, 3))
        return shift if acts else None

    def move(self, sample: Sample, parameters: Shift) -> None:
        pet, voxel = sample.image[1:], np.asarray(self.spacing)[::-1]  # mm, (z, y, x)
        if not len(pet):
            return
        # Rigid in mm, and therefore sheared in voxels that are no cubes.
        matrix = np.diag(1 / voxel) @ rotation(parameters.angles) @ np.diag(voxel)
        z, y, x = pet.shape[1:]
        grid = sampling_grid(matrix, (z, y, x), (z, y, x), parameters.mm / voxel, pet.device)
        pet.copy_(F.grid_sample(pet[None], grid, padding_mode="border", align_corners=False)[0])


class HeadTruncation(NamedTuple):
    """Whether the cut goes through the head or the body beneath it, and how far up (0 to 1) of either."""

    through_head: bool
    height: float


@dataclass(kw_only=True)
class RandomHeadTruncation(SpatialTransform):
    """Cuts the top of a scan off, so that the localiser learns scans with and without a head.

    The cut goes through the head as often as through the body beneath it, whose lower half always stays. What
    is left is moved to the top of the grid, where the stage places every scan, and below it is air: the
    minimum of each channel, and label 0. Acts on scans; those without a head (label 1) stay as they are.
    """

    def draw(self, rng: np.random.Generator, channels: int) -> HeadTruncation | None:
        acts, cut = rng.random() < self.p, HeadTruncation(bool(rng.random() < 0.5), rng.random())
        return cut if acts else None

    def move(self, sample: Sample, parameters: HeadTruncation) -> None:
        slices = sample.label.flatten(1).any(1).nonzero()[:, 0]  # z; the last one is on top
        if not len(slices):
            return
        bottom, top = int(slices[0]), int(slices[-1]) + 1
        low, high = (bottom, top) if parameters.through_head else (bottom // 2, bottom)
        low, high = max(low, 1), max(high, 1)
        kept = low + int(parameters.height * (high - low + 1))
        for data, air in ((sample.image, sample.image.amin(dim=(1, 2, 3))), (sample.label[None], [0])):
            lost = data.shape[1] - kept
            data[:, lost:] = data[:, :kept].clone()
            for channel, value in zip(data, air, strict=True):
                channel[:lost] = value
