"""From cubes back to one volume on the CT's grid.

Where cubes overlap, each counts by a weight that is 1 in its middle and falls to almost nothing at its faces,
where a network has seen the least around a voxel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.data.resample import index_box, to_image
from hnseg.imaging.grid import Grid

Box = tuple[slice, slice, slice]
Placed = tuple[NDArray[Any], Box]


def blend(grids: Sequence[Grid], maps: Iterable[NDArray[np.float32]], ct: sitk.Image) -> Placed | None:
    """Brings the cubes' probabilities to the CT's grid: their weighted mean.

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
    region = _region(grids, ct)
    if region is None:
        return None
    part, box = region
    shape = part.GetSize()[::-1]
    total: NDArray[np.float32] | None = None
    weights = np.zeros(shape, np.float32)
    for grid, one in zip(grids, maps, strict=True):
        total = np.zeros((len(one), *shape), np.float32) if total is None else total
        placed = to_image(np.concatenate([one, _weight(grid)[None]]), grid, part)
        if placed is not None:
            values, where = placed
            total[(slice(None), *where)] += values[:-1] * values[-1]
            weights[where] += values[-1]
    assert total is not None
    return total / np.maximum(weights, np.finfo(np.float32).tiny), box


def paste(grids: Sequence[Grid], labels: Iterable[NDArray[np.uint8]], ct: sitk.Image) -> Placed | None:
    """Brings labels decided in cubes to the CT's grid by nearest neighbour: those of the heaviest cube.

    Args:
        grids: The cubes.
        labels: (z, y, x) on each of them, taken one at a time.
        ct: The image whose grid is wanted.

    Returns:
        uint8 labels (z, y, x), and the box (z, y, x) of the CT that they fill; None as for `blend`.
    """
    region = _region(grids, ct)
    if region is None:
        return None
    part, box = region
    chosen = np.zeros(part.GetSize()[::-1], np.uint8)
    heaviest = np.zeros(chosen.shape, np.float32)
    for grid, one in zip(grids, labels, strict=True):
        placed, weighed = to_image(one[None], grid, part), to_image(_weight(grid)[None], grid, part)
        if placed is not None and weighed is not None:
            ((label,), where), ((weight,), _) = placed, weighed
            heavier = weight > heaviest[where]
            chosen[where][heavier] = label[heavier]
            heaviest[where][heavier] = weight[heavier]
    return chosen, box


def _region(grids: Sequence[Grid], ct: sitk.Image) -> tuple[sitk.Image, Box] | None:
    """The part of the CT that the cubes reach, and its box (z, y, x)."""
    box = index_box(ct, np.concatenate([grid.corners for grid in grids]))
    if box is None:
        return None
    x, y, z = (slice(a, b) for a, b in box)
    return ct[x, y, z], (z, y, x)


def _weight(grid: Grid) -> NDArray[np.float32]:
    """(z, y, x): the product over the axes of the distance to the nearer face, 1 in the middle."""
    sides = [2 * np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / n for n in grid.shape]
    return reduce(np.multiply.outer, sides).astype(np.float32)
