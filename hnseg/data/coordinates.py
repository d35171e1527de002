"""Coordinate channels: where each voxel lies in the ROI.

Positions are in units of half the ROI from its middle: -1 and 1 are its faces, whatever its voxels, and 1 is
left, posterior, superior. All that padding, cutting and augmentation do to voxels is affine, so positions are
carried as a matrix (3, 4) from a voxel (z, y, x, 1) to its position (z, y, x), and go on beyond the ROI.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AXES = ("x", "y", "z")
Position = NDArray[np.float64]


def roi_position(shape: Sequence[int]) -> Position:
    """Positions of a whole ROI (z, y, x)."""
    n = np.asarray(shape)
    return np.column_stack([np.diag(2 / n), 1 / n - 1])


def follow(
    position: Position, matrix: NDArray[np.float64], first: Sequence[float] | NDArray[np.float64]
) -> Position:
    """Positions of an output whose voxel v shows `matrix @ v + first` of the input (z, y, x)."""
    slopes, offset = position[:, :3], position[:, 3]
    return np.column_stack([slopes @ matrix, slopes @ np.asarray(first) + offset])


def coordinate_channels(position: Position, shape: Sequence[int], device: torch.device) -> Tensor:
    """x, y and z of each voxel of a shape (z, y, x): (3, z, y, x) float32."""
    *slopes, offset = torch.from_numpy(position[::-1].T.copy()).to(device)
    z, y, x = (
        torch.arange(n, device=device)[:, None] * slope for n, slope in zip(shape, slopes, strict=True)
    )
    positions = z[:, None, None] + y[None, :, None] + x[None, None, :] + offset
    return positions.movedim(-1, 0).float().contiguous()
