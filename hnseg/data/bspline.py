"""Separable spline interpolation: between axis-aligned lattices, one banded matrix an axis.

A row of the matrix says how an output sample is made of the input's voxels. For the cubic spline that is the
prefilter and the evaluation in one (Unser 1999, IEEE Signal Processing Magazine 16(6)), with the boundary
conditions of ITK's BSplineInterpolateImageFunction: the signal is mirrored at its outermost voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from threadpoolctl import threadpool_limits

# What a voxel adds to a sample falls by 0.27 a step (the prefilter's pole); less than this part is left out:
# together under 0.001 HU where neighbours differ by 3000.
_NEGLIGIBLE = 1e-7

# Rows multiplied at a time: enough for BLAS, few enough that they share most of their columns.
_ROWS = 32


def sample(
    values: NDArray[Any], at: Sequence[NDArray[np.float64]], degree: int, fill: float
) -> NDArray[np.float32]:
    """Interpolates an array at the points of a lattice.

    Args:
        values: (z, y, x) or (C, z, y, x); a part of a larger array is read where it lies.
        at: For each of the three axes (z, y, x) where to sample, in voxels from the centre of the first;
            ascending or descending.
        degree: 3 for the cubic B-spline (four voxels an axis at least), 1 for linear.
        fill: Value where a sample lies more than half a voxel beyond the outermost centre, as in ITK: half a
            voxel below the first is still inside, half a voxel above the last is outside.

    Returns:
        float32, the leading axis of `values` and one sample for each point of `at`.
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
    needed = [_counting(matrix) for matrix in matrices]
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

    Args:
        at: Points in voxels from the centre of the first, at most half a voxel beyond the outermost centres.
        size: Voxels.
        degree: 3 or 1, as for `sample`.
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
    """Blocks of rows, and the columns that count in them."""
    for start in range(0, len(matrix), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, _counting(matrix[rows])


def _counting(matrix: NDArray[np.float32]) -> slice:
    """The columns that count in any row."""
    columns = np.flatnonzero((np.abs(matrix) > _NEGLIGIBLE).any(axis=0))
    return slice(int(columns[0]), int(columns[-1]) + 1)
