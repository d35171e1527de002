"""Resampling for training and inference: a case's images → stage grid, and maps back to the CT's grid.

A stage's volumes are cut from the study itself, or from the authors' windowed head crop (`Sampling`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from threadpoolctl import threadpool_limits

from hnseg.card import Sampling
from hnseg.imaging import grid as grids
from hnseg.imaging.grid import Grid, top_of_scan_grid

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", "NDArray[Any]", "Tensor")
MODALITIES = ("ct", "pet")
# What lies outside the scan: air for CT, no activity for PET.
AIR_HU = -1024.0
NO_SUV = 0.0
# The authors' window on the PET that min-max has brought to [0, 1]: level 2.5, width 5.
_PET_WINDOW = (0.0, 5.0)
# Range of an image that is taken for constant.
_EPS = 1e-8
# The B-spline prefilter's memory of a voxel falls by 0.27 a step: 12 voxels leave less than 1e-6 of it.
_SUPPORT = 12
# Lattices count as parallel if no voxel strays by more than this, in voxels of the source: 0.01 HU where
# neighbours differ by 1000.
_PARALLEL = 1e-5
# What a voxel adds to a sample falls by 0.27 a step (the prefilter's pole); less than this part is left out:
# together under 0.001 HU where neighbours differ by 3000.
_NEGLIGIBLE = 1e-7
# Rows multiplied at a time: enough for BLAS, few enough that they share most of their columns.
_ROWS = 32
# (start, stop) along i, j, k.
IndexBox = tuple[tuple[int, int], ...]


def sample_images(
    sampling: Sampling,
    ct: sitk.Image,
    pet: sitk.Image,
    grid: Grid,
    *,
    modalities: Sequence[str] = MODALITIES,
    antialias: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """CT (HU) and PET (SUV) on a stage's grid, (z, y, x) float32 by modality.

    Args:
        sampling: `study`, or `head_crop`: the authors' crop below the top of the scan, windowed to [0, 1].
        ct: CT, HU.
        pet: PET, SUV.
        grid: The stage's grid on this case.
        modalities: Those wanted: the localiser sees CT alone, and sampling costs seconds.
        antialias: As for `to_grid`.

    Returns:
        From the study, HU are rounded to whole numbers, as the cache keeps them.
    """
    images, authors = {"ct": ct, "pet": pet}, sampling.outside == "minus_one"
    outside = {"ct": -1.0, "pet": -1.0} if authors else {"ct": AIR_HU, "pet": NO_SUV}
    if sampling.source == "head_crop":
        crop = _head_grid(sampling, ct)
        units = sample_images(Sampling("study", sampling.outside), ct, pet, crop, modalities=modalities)
        if "ct" in units:
            units["ct"] = window(units["ct"], *sampling.ct_window)
        if "pet" in units:
            units["pet"] = window(minmax(units["pet"]), *_PET_WINDOW)
        images = {name: crop.image(unit) for name, unit in units.items()}
        outside = {"ct": -1.0 if authors else 0.0, "pet": 0.0}
    sampled = {
        name: to_grid(images[name], grid, fill=outside[name], antialias=antialias) for name in modalities
    }
    if sampling.source == "study" and "ct" in sampled:
        sampled["ct"] = np.clip(np.rint(sampled["ct"]), -32768, 32767)
    return sampled


def sample_label(sampling: Sampling, label: sitk.Image, ct: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
    """A label image on a stage's grid, sampled as often as the images are, by nearest neighbour."""
    if sampling.source == "study":
        return label_to_grid(label, grid)
    crop = _head_grid(sampling, ct)
    return label_to_grid(crop.image(label_to_grid(label, crop)), grid)


def _head_grid(sampling: Sampling, ct: sitk.Image) -> Grid:
    return top_of_scan_grid(ct, sampling.head_size, sampling.head_spacing, lateral="corner")


def window(x: T, low: float, high: float) -> T:
    """Clips an array or tensor to [low, high] and scales it to [0, 1] (paper section 2.3)."""
    return (x.clip(low, high) - low) / (high - low)


def minmax(x: T) -> T:
    """Scales an array or tensor to [0, 1] by its extremes."""
    extent = x.max() - x.min()
    return (x - x.min()) / (extent if extent > _EPS else _EPS)


def to_grid(image: sitk.Image, grid: Grid, *, fill: float, antialias: bool = False) -> NDArray[np.float32]:
    """An image of any orientation on a grid, (z, y, x), by cubic B-spline; `fill` outside it.

    `antialias` smooths before sampling on a coarser lattice. The paper samples as is; coarse configurations
    for small machines gain from it.
    """
    box = index_box(image, grid.corners, margin=_SUPPORT)
    if box is None:
        return np.full(grid.shape, fill, np.float32)
    # ITK's recursive Gaussian and B-spline need four voxels a side; a few slices are sampled as they are.
    if antialias and min(stop - first for first, stop in box) >= 4:
        image, box = _smooth(_cut(image, box), grid), None
    if min(image.GetSize()) >= 4:
        values = sitk.GetArrayViewFromImage(image)
        sampled = _sample_parallel(values, image, _frame(grid), grid.size, degree=3, fill=fill)
        if sampled is not None:
            return sampled
    cropped = sitk.Cast(image if box is None else _cut(image, box), sitk.sitkFloat32)  # ITK rounds integers
    # ITK's B-spline needs more than three voxels a side; a thinner image is sampled linearly.
    interpolator = sitk.sitkBSpline if min(cropped.GetSize()) >= 4 else sitk.sitkLinear
    return grids.sample(cropped, grid, interpolator, fill)


def label_to_grid(label: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
    """Resamples a label image onto a stage grid by nearest neighbour; background outside it."""
    box = index_box(label, grid.corners)
    if box is None:
        return np.zeros(grid.shape, np.uint8)
    return grids.sample(_cut(label, box), grid).astype(np.uint8)


def to_image(
    maps: NDArray[Any], grid: Grid, like: sitk.Image
) -> tuple[NDArray[Any], tuple[slice, slice, slice]] | None:
    """Brings maps from a stage grid back onto an image's grid, only inside the box the stage saw.

    Args:
        maps: (C, z, y, x) on `grid`: probabilities (float32), or labels (uint8).
        grid: The stage grid.
        like: The image, normally the CT.

    Returns:
        Maps (C, z, y, x), interpolated linearly (labels by nearest neighbour), zero outside the stage grid,
        and the box (z, y, x) of `like` that they fill; None if grid and image do not meet.
    """
    box = index_box(like, grid.corners)
    if box is None:
        return None
    i, j, k = (slice(a, b) for a, b in box)
    how = sitk.sitkNearestNeighbor
    if maps.dtype != np.uint8:
        how, first = sitk.sitkLinear, _cut(like, tuple((a, a + 1) for a, _ in box))
        size = [b - a for a, b in box]
        sampled = _sample_parallel(maps, _frame(grid), first, size, degree=1, fill=0.0)
        if sampled is not None:
            return sampled, (k, j, i)
    target = _cut(like, box)
    images = [sitk.Resample(grid.image(m), target, sitk.Transform(), how, 0.0) for m in maps]
    return np.stack([sitk.GetArrayFromImage(image) for image in images]), (k, j, i)


def index_box(image: sitk.Image, points: NDArray[np.float64], margin: int = 1) -> IndexBox | None:
    """The smallest index box ((start, stop) along i, j, k) of `image` that holds all points (mm).

    None if the points' box lies outside the image.
    """
    steps = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    # All at once: the image's own transform takes one point a call, seconds for a large lesion's voxels.
    index = np.linalg.solve(steps, (points - np.asarray(image.GetOrigin())).T).T
    first = np.floor(index.min(axis=0)).astype(int) - margin
    stop = np.ceil(index.max(axis=0)).astype(int) + 1 + margin
    size = np.asarray(image.GetSize())
    first, stop = np.clip(first, 0, size), np.clip(stop, 0, size)
    if np.any(stop <= first):
        return None
    return tuple((int(a), int(b)) for a, b in zip(first, stop, strict=True))


def _frame(grid: Grid) -> sitk.Image:
    return grid.image(np.zeros((1, 1, 1), np.uint8))


def _cut(image: sitk.Image, box: IndexBox) -> sitk.Image:
    """The part of an image in an index box. A 144 mm ROI of a whole-body CT is 2 % of it."""
    return image[tuple(slice(a, b) for a, b in box)]


def _smooth(image: sitk.Image, grid: Grid) -> sitk.Image:
    """Gaussian whose width brings the image's own resolution to the grid's, axis by axis."""
    direction = np.abs(np.asarray(image.GetDirection()).reshape(3, 3))
    target = direction.T @ np.asarray(grid.spacing)
    excess = np.maximum(target**2 - np.asarray(image.GetSpacing()) ** 2, 0.0)
    sigma = np.maximum(0.3 * np.sqrt(excess), 1e-3)
    return sitk.SmoothingRecursiveGaussian(sitk.Cast(image, sitk.sitkFloat32), [float(s) for s in sigma])


def _sample_parallel(
    values: NDArray[Any],
    source: sitk.Image,
    target: sitk.Image,
    size: Sequence[int],
    *,
    degree: int,
    fill: float,
) -> NDArray[np.float32] | None:
    """Values (..., k, j, i) on the source's lattice at the first `size` voxels (i, j, k) of `target`.

    None if the lattices are not parallel.
    """

    def in_source(axis: int, index: int) -> NDArray[np.float64]:
        point = target.TransformIndexToPhysicalPoint([index if a == axis else 0 for a in range(3)])
        return np.array(source.TransformPhysicalPointToContinuousIndex(point))

    spans = np.array([in_source(axis, n) - in_source(axis, 0) for axis, n in enumerate(size)])
    order = np.abs(spans).argmax(axis=1).tolist()  # the source's axis along each of the target's
    stray = spans.copy()
    stray[range(3), order] = 0
    if np.abs(stray).max() > _PARALLEL:
        return None
    at = [np.array([in_source(axis, i)[order[axis]] for i in range(n)]) for axis, n in enumerate(size)]
    # ITK walks along rows by fractions of their length; so do we, to agree on what is just outside.
    at[0] = in_source(0, 0)[order[0]] + np.arange(size[0]) / size[0] * spans[0, order[0]]
    sampled = interpolate(values, [at[order.index(axis)] for axis in (2, 1, 0)], degree, fill)
    leading = values.ndim - 3
    axes = [leading + 2 - order[axis] for axis in (2, 1, 0)]
    return np.ascontiguousarray(sampled.transpose(*range(leading), *axes))


def interpolate(
    values: NDArray[Any], at: Sequence[NDArray[np.float64]], degree: int, fill: float
) -> NDArray[np.float32]:
    """Interpolates an array at the points of a lattice.

    Args:
        values: (z, y, x) or (C, z, y, x).
        at: For each axis (z, y, x) where to sample, in voxels from the centre of the first, in order.
        degree: 3 for the cubic B-spline (four voxels an axis at least), 1 for linear.
        fill: Value where a sample lies more than half a voxel beyond the outermost centre, as in ITK: half a
            voxel below the first is still inside, half a voxel above the last is outside.

    Returns:
        float32, the leading axis of `values` and a sample for each point of `at`.
    """
    whole = (slice(None),) * (values.ndim - 3)
    sizes = values.shape[-3:]
    inside = [_inside(points, size) for points, size in zip(at, sizes, strict=True)]
    out = np.full((*values.shape[:-3], *map(len, at)), fill, np.float32)
    matrices = [
        weights(points[part], size, degree) for points, part, size in zip(at, inside, sizes, strict=True)
    ]
    if not all(matrix.size for matrix in matrices):
        return out
    needed = [_relevant(matrix) for matrix in matrices]
    matrices = [matrix[:, columns] for matrix, columns in zip(matrices, needed, strict=True)]
    result = values[(*whole, *needed)].astype(np.float32, copy=False)
    # BLAS's threads wait for each other in a loop at the end of every small product: many times slower than
    # one thread as soon as the cores have anything else to do.
    with threadpool_limits(1, "blas"):
        # What shrinks the array most comes first, and the rest has less to do.
        *first, last = sorted((-3, -2, -1), key=lambda a: matrices[a].shape[0] / matrices[a].shape[1])
        for axis in first:
            result = _apply(matrices[axis], result, axis)
        _apply(matrices[last], result, last, out=out[(*whole, *inside)])
    return out


def weights(at: NDArray[np.float64], size: int, degree: int) -> NDArray[np.float32]:
    """The interpolation's matrix for an axis of `size` voxels, (points, voxels).

    The points lie at most half a voxel beyond the outermost centres.
    """
    if degree == 1:
        # Beyond the outermost centres the nearest voxel counts, as in ITK.
        at = np.clip(at, 0, size - 1)
    reach = (degree + 1) // 2
    taps = np.floor(at).astype(int)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(at[:, None] - taps)
    basis = np.zeros((len(at), size))
    np.add.at(basis, (np.arange(len(at))[:, None], _mirrored(taps, size)), _kernel(distance, degree))
    return (basis if degree == 1 else _prefiltered(basis)).astype(np.float32)


def _inside(at: NDArray[np.float64], size: int) -> slice:
    """The points that ITK's IsInsideBuffer accepts: neighbours, because the points are in order."""
    accepted = np.flatnonzero((at >= -0.5) & (at < size - 0.5))
    return slice(int(accepted[0]), int(accepted[-1]) + 1) if len(accepted) else slice(0, 0)


def _kernel(distance: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """The B-spline of a degree at a distance of at most its reach, in voxels."""
    if degree == 1:
        return 1 - distance
    return np.where(distance < 1, 2 / 3 - distance**2 * (1 - distance / 2), (2 - distance) ** 3 / 6)


def _mirrored(index: NDArray[Any], size: int) -> NDArray[Any]:
    index = np.abs(index)
    return np.where(index >= size, 2 * (size - 1) - index, index)


def _prefiltered(basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Basis times the inverse of the spline's values at the voxels (1/6, 4/6, 1/6, mirrored at the ends)."""
    bands = np.repeat([[1 / 6], [4 / 6], [1 / 6]], basis.shape[1], axis=1)
    # Of the transpose: the outermost voxels see their one neighbour twice.
    bands[2, 0] = bands[0, -1] = 2 / 6
    return solve_banded((1, 1), bands, basis.T).T


def _apply(
    matrix: NDArray[np.float32],
    values: NDArray[np.float32],
    axis: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Multiplies a matrix (points, voxels) along one axis (-3, -2 or -1), block by block along the band."""
    if out is None:
        shape = list(values.shape)
        shape[axis] = len(matrix)
        out = np.empty(shape, np.float32)
    # BLAS wants the axis last, or beside the last.
    last = axis == -1
    source, target = (a if last else np.moveaxis(a, axis, -2) for a in (values, out))
    for rows, columns in _blocks(matrix):
        block = matrix[rows, columns]
        if last:
            np.matmul(source[..., columns], block.T, out=target[..., rows])
        else:
            np.matmul(block, source[..., columns, :], out=target[..., rows, :])
    return out


def _blocks(matrix: NDArray[np.float32]) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, and the columns that are not negligible in them."""
    for start in range(0, len(matrix), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, _relevant(matrix[rows])


def _relevant(matrix: NDArray[np.float32]) -> slice:
    """The columns that are not negligible in every row."""
    columns = np.flatnonzero((np.abs(matrix) > _NEGLIGIBLE).any(axis=0))
    return slice(int(columns[0]), int(columns[-1]) + 1)
