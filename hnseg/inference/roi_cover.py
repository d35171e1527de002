"""Several cubes where the coarse lesions do not fit one: where they lie, and their maps on the CT's grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.data.resample import index_box, to_image
from hnseg.imaging.grid import Grid, Point, nearest_corner
from hnseg.imaging.images import from_array, to_array
from hnseg.imaging.masks import Box, positions, voxel_ml
from hnseg.inference.decision import remove_small
from hnseg.metrics.lesions import label_lesions

Points = NDArray[np.float64]
# Tiles of a lesion larger than the cube share at least this much of their length.
_OVERLAP = 0.25
_TOLERANCE_MM = 1e-3


def lesion_ml_outside(found: sitk.Image, grids: Sequence[Grid]) -> float:
    """Volume in ml of the lesion voxels (labels on any grid) whose centres lie in none of the cubes."""
    points = positions(found)
    held = np.any([_held(points, grid.center, grid.extent) for grid in grids], axis=0)
    return float((~held).sum() * voxel_ml(found.GetSpacing()))


def cover_rois(found: sitk.Image, centred: Grid, floors: Sequence[float]) -> list[Grid]:
    """The cubes in which the next stage sees every lesion whole.

    A single cube, centred as in training, where that holds them. Otherwise components are grouped, the
    largest first, so that each group fits a cube, which is centred on the group's mean voxel and moved no
    further than it takes to hold the group. A component larger than a cube is tiled.

    Args:
        found: Lesion labels on the grid of the stage before.
        centred: The cube centred on all of them.
        floors: For each label, ml below which a component asks for no cube of its own: it would not
            stay in the mask either.
    """
    # What a voxel's centre may span if the whole voxel is to lie inside.
    room = np.maximum(centred.extent - np.asarray(found.GetSpacing()), _TOLERANCE_MM)
    lesions = _components(found, floors)
    if all(_held(points, centred.center, room).all() for points in lesions):
        return [centred]
    centers = [c for points in lesions if not _fits(points, room) for c in _centers(points, room, found)]
    small = [points for points in lesions if _fits(points, room)]
    left = [points for points in small if not any(_held(points, c, room).all() for c in centers)]
    centers += [c for group in _grouped(left, room) for c in _centers(group, room, found)]
    return [Grid.centred(center, centred.size, centred.spacing) for center in centers]


def _components(found: sitk.Image, floors: Sequence[float]) -> list[Points]:
    """Voxel centres in mm of each 26-connected component of all classes together, the largest first."""
    kept = remove_small(to_array(found), voxel_ml(found.GetSpacing()), floors)
    numbered, count = label_lesions(kept > 0)
    points, numbers = positions(from_array(kept, found)), numbered[kept > 0]
    return sorted((points[numbers == n] for n in range(1, count + 1)), key=len, reverse=True)


def _grouped(lesions: Sequence[Points], room: Point) -> list[Points]:
    """Each component joins the first group that still fits a cube with it, or founds one."""
    groups: list[Points] = []
    for points in lesions:
        joined = [np.concatenate([group, points]) for group in groups]
        home = next((n for n, group in enumerate(joined) if _fits(group, room)), None)
        if home is None:
            groups.append(points)
        else:
            groups[home] = joined[home]
    return groups


def _centers(points: Points, room: Point, found: sitk.Image) -> list[Point]:
    """Middles of the cubes that hold all points: one where they fit it, else as many as it takes."""
    middle = nearest_corner(found, points.mean(axis=0))
    low, high = points.min(axis=0), points.max(axis=0)
    axes = []
    for first, last, mean, length in zip(low, high, middle, room, strict=True):
        if last - first <= length + _TOLERANCE_MM:
            axes.append([min(max(mean, last - length / 2), first + length / 2)])
        else:
            steps = int(np.ceil((last - first - length) / (length * (1 - _OVERLAP))))
            axes.append(list(np.linspace(first + length / 2, last - length / 2, steps + 1)))
    centers = [np.array(center) for center in product(*axes)]
    return [center for center in centers if _held(points, center, room).any()]


def _fits(points: Points, room: Point) -> bool:
    return bool((np.ptp(points, axis=0) <= room + _TOLERANCE_MM).all())


def _held(points: Points, center: Point, extent: Point) -> NDArray[np.bool_]:
    """Which points lie in the box around `center`."""
    distance: Points = np.abs(points - center)
    return np.all(distance <= extent / 2 + _TOLERANCE_MM, axis=1)


def blend(
    grids: Sequence[Grid], maps: Iterable[NDArray[np.float32]], ct: sitk.Image
) -> tuple[NDArray[Any], Box] | None:
    """Brings the cubes' maps to the CT's grid, linearly.

    Where cubes overlap, each counts by a weight that is 1 in its middle and falls to almost nothing at its
    faces, where a network has seen the least around a voxel.

    Args:
        grids: The cubes.
        maps: (K, z, y, x) float32 on each of them, taken one at a time.
        ct: The image whose grid is wanted.

    Returns:
        (K, z, y, x), zero where no cube reaches, and the box (z, y, x) of the CT that they fill; None if the
        cubes miss the CT.
    """
    if len(grids) == 1:
        return to_image(next(iter(maps)), grids[0], ct)
    reached = index_box(ct, np.concatenate([grid.corners for grid in grids]))
    if reached is None:
        return None
    x, y, z = (slice(a, b) for a, b in reached)
    part = ct[x, y, z]
    weights = np.zeros(part.GetSize()[::-1], np.float32)
    total: NDArray[np.float32] | None = None
    for grid, cube in zip(grids, maps, strict=True):
        total = np.zeros((len(cube), *weights.shape), np.float32) if total is None else total
        placed = to_image(np.concatenate([cube, _weight(grid)[None]]), grid, part)
        if placed is not None:
            values, where = placed
            total[(slice(None), *where)] += values[:-1] * values[-1]
            weights[where] += values[-1]
    assert total is not None
    return total / np.maximum(weights, np.finfo(np.float32).tiny), (z, y, x)


def _weight(grid: Grid) -> NDArray[np.float32]:
    """(z, y, x): the product over the axes of the distance to the nearer face, 1 in the middle."""
    sides = [2 * np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / n for n in grid.shape]
    return reduce(np.multiply.outer, sides).astype(np.float32)
