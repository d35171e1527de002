"""SUVpeak's sphere: the mean over 1 ml around every voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# A sphere of 1 ml.
PEAK_RADIUS_MM = 6.2


def sphere_means(
    suv: NDArray[np.floating], spacing: Sequence[float], seen: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Mean of the voxels whose centres lie within 6.2 mm of each voxel's centre.

    Args:
        suv: SUV, (z, y, x).
        spacing: Voxel size in mm, (x, y, z).
        seen: Which voxels count, (z, y, x); all by default, none beyond the array. A sphere without any
            has mean 0.
    """
    there = np.ones(suv.shape) if seen is None else seen.astype(np.float64)
    ball = _ball(spacing)
    total = ndimage.convolve(suv * there, ball, mode="constant")
    return total / np.maximum(ndimage.convolve(there, ball, mode="constant"), 1)


def _ball(spacing: Sequence[float]) -> NDArray[np.float64]:
    """1 for the voxels (z, y, x) whose centres lie within the radius of the middle one."""
    x, y, z = (np.arange(-(n := int(np.ceil(PEAK_RADIUS_MM / mm))), n + 1) * mm for mm in spacing)
    squared = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x**2
    return (squared <= PEAK_RADIUS_MM**2).astype(np.float64)
