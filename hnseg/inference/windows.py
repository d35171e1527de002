"""Sliding windows as nnU-Net and MONAI lay them: where the windows start, their weights, and the sum.

Both weigh a window's voxels by a Gaussian of an eighth of its side and divide by the summed weights. They
differ in the steps (nnU-Net spaces windows evenly, MONAI keeps a fixed interval and shifts the last one in),
in the Gaussian's middle, and in how small a weight may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

Tiling = Literal["nnunet", "monai"]
Shape = tuple[int, ...]
# Standard deviation of the weights, as a share of the window's side.
SIGMA = 1 / 8
# The least weight under MONAI's tiling.
FLOOR = 1e-3
# What stands around a volume smaller than the window.
FILL = 0.0
_ALL = (slice(None), slice(None))  # of batch and channels


def slide(
    run: Callable[[Tensor], Tensor], image: Tensor, window: Shape, tiling: Tiling, overlap: float
) -> Tensor:
    """Logits of a volume, one window after the other.

    Args:
        run: (1, C, *window) → (1, K, *window) float32.
        image: (1, C, *sides). A side smaller than the window is padded at both ends.
        window: Sides of the window.
        tiling: Whose steps and weights.
        overlap: Share of a window that the next one repeats at least (nnU-Net), or exactly (MONAI).

    Returns:
        (1, K, *sides) float32: the weighted mean over windows.
    """
    sides = image.shape[2:]
    image, inside = _pad(image, window)
    steps = [starts(n, w, tiling, overlap) for n, w in zip(image.shape[2:], window, strict=True)]
    if all(len(one) == 1 for one in steps):  # a single window's mean is itself
        return run(image)[(*_ALL, *inside)]
    weights = gaussian(window, tiling).to(image.device)
    covered = torch.zeros(image.shape[2:], device=image.device)
    total: Tensor | None = None
    for corner in product(*steps):
        box = tuple(slice(start, start + w) for start, w in zip(corner, window, strict=True))
        logits = run(image[(*_ALL, *box)])
        if total is None:
            total = torch.zeros((1, logits.shape[1], *image.shape[2:]), device=image.device)
        total[(*_ALL, *box)] += logits * weights
        covered[box] += weights
    assert total is not None
    stitched = total.div_(covered)[(*_ALL, *inside)]
    assert stitched.shape[2:] == sides
    return stitched


def starts(side: int, window: int, tiling: Tiling, overlap: float) -> list[int]:
    """First voxel of every window along one axis.

    Args:
        side: Voxels of the volume, at least the window's.
        window: Voxels of the window.
        tiling: `nnunet` is compute_steps_for_sliding_window: as many windows as the overlap asks for, evenly
            spaced. `monai` is sliding_window_inference: every int(window x (1 - overlap)) voxels, the last
            window shifted in.
        overlap: Share of a window, below 1.
    """
    last = side - window
    if tiling == "nnunet":
        gaps = math.ceil(last / (window * (1 - overlap)))
        return [round(last / gaps * n) for n in range(gaps + 1)] if gaps else [0]
    interval = max(int(window * (1 - overlap)), 1)
    return [*range(0, last, interval), last]


@lru_cache(maxsize=8)
def gaussian(window: Shape, tiling: Tiling) -> Tensor:
    """Weights of a window's voxels, of the window's shape, float32, at most 1.

    Args:
        window: Sides of the window.
        tiling: `nnunet` is compute_gaussian: a filtered point at side // 2, zeros raised to the least other
            weight. `monai` is compute_importance_map: the Gaussian itself, about the exact middle, raised to
            at least `FLOOR`.
    """
    profile = _filtered_point if tiling == "nnunet" else _bell
    map_ = np.ones(())
    for side in window:
        map_ = map_[..., None] * profile(side)
    weights = map_.astype(np.float32)
    if tiling == "nnunet":
        weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights if tiling == "nnunet" else weights.clip(max(weights.min(), FLOOR)))


def _filtered_point(side: int) -> NDArray[np.float64]:
    point = np.zeros(side)
    point[side // 2] = 1
    filtered = gaussian_filter1d(point, SIGMA * side, mode="constant")
    return filtered / filtered.max()


def _bell(side: int) -> NDArray[np.float64]:
    offset = np.arange(side) - (side - 1) / 2
    return np.exp(-(offset**2) / (2 * (SIGMA * side) ** 2))


def _pad(image: Tensor, window: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """The image at least as large as the window, an odd voxel behind, and where the image lies in it."""
    missing = [max(w - n, 0) for n, w in zip(image.shape[2:], window, strict=True)]
    inside = tuple(slice(m // 2, m // 2 + n) for n, m in zip(image.shape[2:], missing, strict=True))
    if not any(missing):
        return image, inside
    pads = [(m // 2, m - m // 2) for m in missing]
    return F.pad(image, [n for pair in reversed(pads) for n in pair], value=FILL), inside
