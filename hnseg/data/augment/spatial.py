"""Augmentation of geometry: rotation and scaling, mirroring, misaligned PET, scans cut at the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torchio as tio
from numpy.typing import NDArray
from torch import Tensor
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.intensity import coin, uniform
from hnseg.data.intensity import Coordinates
from hnseg.data.patch import Patch, Shape


class RandomPatchAffine(RandomTransform, tio.SpatialTransform):
    """Turns and scales a patch within its surroundings, and cuts it (nnU-Net's SpatialTransform).

    Reads the subject's `patch` (a `hnseg.data.patch.Patch`), if there is one, from images that still are
    whole volumes, so that no corner of a turned patch is empty where there was anatomy; and cuts the
    patch as it is where nothing is turned or scaled. It must therefore be the first of a mix. Subjects
    without `patch` are turned as they are. Outside the volume, images and labels are 0.

    Args:
        p_rotation: Probability of a rotation.
        degrees: Angle about each axis, drawn from [-degrees, degrees].
        p_scaling: Probability of a scaling, drawn apart from the rotation's.
        scaling: Range of the factor, the same for all axes; above 1 things become smaller.
        smallest_scale: What the surroundings are made for, beside the largest rotation: they are
            1 / smallest_scale times larger. nnU-Net takes 0.85 whatever `scaling`.
    """

    def __init__(
        self,
        *,
        p_rotation: float = 0.2,
        degrees: float = 30.0,
        p_scaling: float = 0.2,
        scaling: tuple[float, float] = (0.7, 1.4),
        smallest_scale: float = 0.85,
    ) -> None:
        super().__init__()
        self.p_rotation, self.degrees = p_rotation, degrees
        self.p_scaling, self.scaling, self.smallest_scale = p_scaling, scaling, smallest_scale

    def around(self, size: Shape) -> Shape:
        """Shape of the surroundings of a patch, (z, y, x) (nnU-Net's get_patch_size)."""
        turned = [np.abs(size @ rotation(axis * np.deg2rad(self.degrees))) for axis in np.eye(3)]
        largest = np.vstack([np.asarray(size), *turned]).max(axis=0)
        z, y, x = (int(n) for n in largest / self.smallest_scale)
        return z, y, x

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        shape = subject.spatial_shape
        patch = subject.get("patch", Patch(shape, shape, (0, 0, 0)))
        turn, scale = coin(self.p_rotation), coin(self.p_scaling)
        angles = [uniform(-self.degrees, self.degrees) for _ in range(3)] if turn else [0.0] * 3
        factor = uniform(*self.scaling) if scale else 1.0
        if not (turn or scale):
            return _each(subject, lambda image: patch.cut(image.data))
        matrix = rotation(np.deg2rad(angles)) * factor
        return _each(subject, lambda image: resample(image, matrix, patch))


class RandomBorderAffine(RandomTransform, tio.SpatialTransform):
    """Turns and scales an image by itself; its border values go on outside (Auto3DSeg's RandAffined).

    Rotation and scaling come together or not at all. Labels take the nearest voxel's.

    Args:
        radians: Angle about each axis, drawn from [-radians, radians].
        scales: Factor of each axis, drawn from [1 - scales, 1 + scales]; above 1 things become smaller.
    """

    def __init__(self, *, radians: float = 0.26, scales: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.radians, self.scales = radians, scales

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        angles = [uniform(-self.radians, self.radians) for _ in range(3)]
        factors = [uniform(1 - self.scales, 1 + self.scales) for _ in range(3)]
        matrix = rotation(angles) @ np.diag(factors)
        shape = subject.spatial_shape
        patch = Patch(shape, shape, (0, 0, 0))
        return _each(subject, lambda image: resample(image, matrix, patch, "border"))


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


def resample(
    image: tio.Image,
    matrix: NDArray[np.float64],
    patch: Patch,
    outside: Literal["zeros", "border"] = "zeros",
    shift: Sequence[float] | NDArray[np.float64] = (0, 0, 0),
) -> Tensor:
    """A patch of an image (C, z, y, x), turned and scaled about the middle of its surroundings.

    Args:
        image: A volume; images are interpolated linearly.
        matrix: From offsets in the output to offsets in the volume, both from the middle (z, y, x).
        patch: The patch.
        outside: `zeros`: what the surroundings do not hold is 0, and a label is the class with the most
            weight among the eight voxels around (nnU-Net). `border`: the border goes on, and a label is
            that of the nearest voxel (MONAI).
        shift: What the middle of the output shows, from the middle of the surroundings, voxels (z, y, x).

    Returns:
        (C, *patch.size), of the image's type.
    """
    if isinstance(image, Coordinates):
        outside = "zeros"  # unlike an intensity, a position does not go on as it was
    volume, offset = patch.surroundings(image.data)
    middle = np.asarray(offset) + np.asarray(shift)
    grid = _grid(matrix, patch.size, volume.shape[1:], middle, volume.device)

    def sample(channels: Tensor, mode: str = "bilinear") -> Tensor:
        return F.grid_sample(channels[None], grid, mode=mode, padding_mode=outside, align_corners=False)[0]

    if not isinstance(image, tio.LabelMap):
        return sample(volume)
    if outside == "border":
        return sample(volume.float(), "nearest").to(volume.dtype)
    told = image.get("classes", None)
    most = int(volume.max()) if told is None else told
    classes = torch.arange(1, max(most, 1) + 1, dtype=volume.dtype, device=volume.device)
    weights = sample((volume == classes[:, None, None, None]).float())
    background = 1 - weights.sum(0, keepdim=True)  # what lies outside is background
    weight, place = weights.max(0, keepdim=True)  # many times faster than torch's argmax
    return torch.where(weight > background, place + 1, 0).to(volume.dtype)


def _grid(
    matrix: NDArray[np.float64],
    size: Shape,
    source: Sequence[int],
    offset: NDArray[np.float64],
    device: torch.device,
) -> Tensor:
    """Where each voxel of an output (1, z, y, x) lies in the source: (x, y, z) in [-1, 1], edge to edge."""
    half = np.asarray(source) / 2
    linear = matrix * np.asarray(size) / 2 / half[:, None]
    theta = np.column_stack([linear[::-1, ::-1], (offset / half)[::-1]])
    told = torch.from_numpy(theta[None].astype(np.float32)).to(device, non_blocking=True)
    return F.affine_grid(told, [1, 1, *size], align_corners=False)


def _each(subject: tio.Subject, make: Callable[[tio.Image], Tensor]) -> tio.Subject:
    images = subject.get_images_dict(intensity_only=False)
    return tio.Subject({name: type(image)(tensor=make(image)) for name, image in images.items()})


class RandomFlip(RandomTransform, tio.SpatialTransform):
    """Mirrors every image of a subject, as TorchIO's of the same name, which does so in NumPy.

    Args:
        axes: Axes (z, y, x) that may be mirrored, each half of the time.
    """

    def __init__(self, *, axes: Sequence[int] = (0, 1, 2), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axes = tuple(axes)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        drawn = (torch.rand(3) < 0.5).tolist()
        mirrored = [axis + 1 for axis in self.axes if drawn[axis]]
        for image in self.get_images(subject) if mirrored else ():
            image.set_data(image.data.flip(mirrored))
        return subject


class RandomMisalignment(RandomTransform, tio.IntensityTransform):
    """Shifts and turns one modality rigidly about the middle of the ROI; the other and the label stay.

    The label stays with the CT, on which it was drawn. Beyond the ROI the border's values go on. Meant for
    the scan in HU and SUV, before enhancement makes several channels of a modality. A stage that does not see
    the modality stays as it is.

    Args:
        spacing: Voxel size in mm, (x, y, z).
        mm: The shift along each axis is drawn from [-mm, mm].
        degrees: The angle about each axis is drawn from [-degrees, degrees].
        modality: What is moved.
    """

    def __init__(
        self,
        *,
        spacing: tuple[float, float, float],
        mm: float = 4.0,
        degrees: float = 5.0,
        modality: str = "pet",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spacing, self.mm, self.degrees, self.modality = spacing, mm, degrees, modality

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        if self.modality not in subject:
            return subject
        image, shape = subject[self.modality], subject.spatial_shape
        angles = np.deg2rad([uniform(-self.degrees, self.degrees) for _ in range(3)])
        voxel = np.asarray(self.spacing)[::-1]  # mm, (z, y, x)
        # Rigid in mm, and therefore sheared in voxels that are no cubes.
        matrix = np.diag(1 / voxel) @ rotation(angles) @ np.diag(voxel)
        shift = np.array([uniform(-self.mm, self.mm) for _ in range(3)]) / voxel
        image.set_data(resample(image, matrix, Patch(shape, shape, (0, 0, 0)), "border", shift))
        return subject


class RandomHeadCut(RandomTransform, tio.SpatialTransform):
    """Cuts the top of a scan off, so that the head stage learns scans with and without a head.

    The cut goes through the head as often as through the body beneath it, whose lower half always
    stays. What is left is hung from the top of the grid, as the stage hangs every scan, and below it is
    air: the minimum of each channel, and label 0. Meant for the scan in HU and SUV, before
    anything is normalised. Subjects without a head (label 1) stay as they are.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        slices = subject["label"].data[0].flatten(1).any(1).nonzero()[:, 0]  # z; the last one is on top
        if not len(slices):
            return subject
        bottom, top = int(slices[0]), int(slices[-1]) + 1
        low, high = (bottom, top) if coin(0.5) else (bottom // 2, bottom)
        kept = int(torch.randint(max(low, 1), max(high, 1) + 1, ()))
        for image in self.get_images(subject):
            data = image.data
            lost = data.shape[1] - kept
            air = data.amin(dim=(1, 2, 3), keepdim=True) if not isinstance(image, tio.LabelMap) else 0
            moved = torch.empty_like(data)
            moved[:, lost:] = data[:, :kept]
            moved[:, :lost] = air
            image.set_data(moved)
        return subject
