"""The one resampler that training and inference share: image → stage grid, and back to the CT's grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.geometry import Grid

# What lies outside the scan: air for CT, no activity for PET.
AIR_HU = -1024.0
NO_SUV = 0.0

# The B-spline prefilter's memory of a voxel falls by 0.27 a step: 12 voxels leave less than 1e-6 of it.
_SUPPORT = 12


def to_grid(image: sitk.Image, grid: Grid, *, fill: float, antialias: bool = False) -> NDArray[np.float32]:
    """Resamples an image onto a stage grid by cubic B-spline, cropped first.

    Args:
        image: CT in HU or PET in SUV, any orientation.
        grid: Where to sample.
        fill: Value outside the image.
        antialias: Smooth before sampling on a coarser lattice. The paper samples as is; coarse
            configurations for small machines gain from it.

    Returns:
        Array (z, y, x) on `grid`.
    """
    cropped = _crop(image, grid)
    if cropped is None:
        return np.full(grid.shape, fill, np.float32)
    # ITK's recursive Gaussian needs four voxels a side; a few slices are sampled as they are.
    if antialias and min(cropped.GetSize()) >= 4:
        cropped = _smooth(cropped, grid)
    return sitk.GetArrayFromImage(_sample(cropped, grid, sitk.sitkBSpline, fill)).astype(
        np.float32, copy=False
    )


def label_to_grid(label: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
    """Resamples a label image onto a stage grid by nearest neighbour; background outside it."""
    cropped = _crop(label, grid)
    if cropped is None:
        return np.zeros(grid.shape, np.uint8)
    return sitk.GetArrayFromImage(_sample(cropped, grid, sitk.sitkNearestNeighbor, 0.0)).astype(np.uint8)


def to_image(
    maps: NDArray[Any], grid: Grid, like: sitk.Image
) -> tuple[NDArray[Any], tuple[slice, slice, slice]] | None:
    """Brings maps from a stage grid back onto an image's grid, only inside the box the stage saw.

    Args:
        maps: (C, z, y, x) on `grid`: probabilities (float32), or labels (uint8).
        grid: The stage grid.
        like: The image whose grid is wanted, normally the CT.

    Returns:
        Maps (C, z, y, x), interpolated linearly (labels by nearest neighbour), zero outside the stage grid,
        and the box (z, y, x) of `like` that they fill; None if grid and image do not meet.
    """
    box = index_box(like, grid.corners)
    if box is None:
        return None
    target = like[tuple(slice(a, b) for a, b in box)]
    how = sitk.sitkNearestNeighbor if maps.dtype == np.uint8 else sitk.sitkLinear
    sampled = [
        sitk.GetArrayFromImage(sitk.Resample(grid.image(m), target, sitk.Transform(), how, 0.0)) for m in maps
    ]
    (x0, x1), (y0, y1), (z0, z1) = box
    return np.stack(sampled), (slice(z0, z1), slice(y0, y1), slice(x0, x1))


def index_box(
    image: sitk.Image, points: NDArray[np.float64], margin: int = 1
) -> tuple[tuple[int, int], ...] | None:
    """The smallest index box ((start, stop) along i, j, k) of `image` that holds all points (mm).

    None if the points' box lies outside the image.
    """
    index = np.array([image.TransformPhysicalPointToContinuousIndex([float(c) for c in p]) for p in points])
    first = np.floor(index.min(axis=0)).astype(int) - margin
    stop = np.ceil(index.max(axis=0)).astype(int) + 1 + margin
    size = np.asarray(image.GetSize())
    first, stop = np.clip(first, 0, size), np.clip(stop, 0, size)
    if np.any(stop <= first):
        return None
    return tuple((int(a), int(b)) for a, b in zip(first, stop, strict=True))


def _crop(image: sitk.Image, grid: Grid) -> sitk.Image | None:
    """The part of the image that sampling on `grid` reads. A 144 mm ROI of a whole-body CT is 2 % of it."""
    box = index_box(image, grid.corners, margin=_SUPPORT)
    return None if box is None else image[tuple(slice(a, b) for a, b in box)]


def _smooth(image: sitk.Image, grid: Grid) -> sitk.Image:
    """Gaussian whose width brings the image's own resolution to the grid's, axis by axis."""
    direction = np.abs(np.asarray(image.GetDirection()).reshape(3, 3))
    target = direction.T @ np.asarray(grid.spacing)
    excess = np.maximum(target**2 - np.asarray(image.GetSpacing()) ** 2, 0.0)
    sigma = np.maximum(0.3 * np.sqrt(excess), 1e-3)
    return sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), [float(s) for s in sigma])


def _sample(image: sitk.Image, grid: Grid, interpolator: Any, fill: float) -> sitk.Image:
    # ITK's B-spline needs more than three voxels a side; a thinner image is sampled linearly.
    if interpolator == sitk.sitkBSpline and min(image.GetSize()) < 4:
        interpolator = sitk.sitkLinear
    identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    return sitk.Resample(
        image, grid.size, sitk.Transform(), interpolator, grid.origin, grid.spacing, identity, fill
    )
