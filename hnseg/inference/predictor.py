"""One network, one volume → logits: whole where it has the patch's shape, by a sliding window otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import combinations, product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from hnseg.card import Axes, Card, Shape, Tiling
from hnseg.devices import Precision, autocast

# Standard deviation of the windows' Gaussian weights, as a share of the window's side.
SIGMA_SCALE = 1 / 8
# The least weight under MONAI's tiling.
MIN_WEIGHT = 1e-3
# What pads a volume smaller than the window.
PADDING_VALUE = 0.0
_ALL = (slice(None), slice(None))  # of batch and channels


def sliding_window(
    predictor: Callable[[Tensor], Tensor],
    image: Tensor,
    roi_size: tuple[int, ...],
    tiling: Tiling,
    overlap: float,
) -> Tensor:
    """Logits (1, K, *sides) of a volume (1, C, *sides), float32: the weighted mean over windows.

    A side smaller than the window is padded at both ends.

    Args:
        predictor: (1, C, *roi_size) → (1, K, *roi_size) float32.
        image: The volume.
        roi_size: Sides of the window.
        tiling: Whose starts and weights.
        overlap: Share of a window that the next window repeats at least (nnU-Net), or exactly (MONAI).
    """
    image, inside = _pad(image, roi_size)
    starts = [window_starts(n, w, tiling, overlap) for n, w in zip(image.shape[2:], roi_size, strict=True)]
    if all(len(each) == 1 for each in starts):  # a single window's mean is itself
        return predictor(image)[(*_ALL, *inside)]
    weights = gaussian_importance_map(roi_size, tiling).to(image.device)
    weight_sum = torch.zeros(image.shape[2:], device=image.device)
    total: Tensor | None = None
    for corner in product(*starts):
        box = tuple(slice(start, start + w) for start, w in zip(corner, roi_size, strict=True))
        logits = predictor(image[(*_ALL, *box)])
        if total is None:
            total = torch.zeros((1, logits.shape[1], *image.shape[2:]), device=image.device)
        total[(*_ALL, *box)] += logits * weights
        weight_sum[box] += weights
    assert total is not None
    return total.div_(weight_sum)[(*_ALL, *inside)]


def window_starts(image_size: int, roi_size: int, tiling: Tiling, overlap: float) -> list[int]:
    """First voxel of every window along one axis, each once.

    Args:
        image_size: Voxels of the volume, at least the window's.
        roi_size: Voxels of the window.
        tiling: `nnunet` is compute_steps_for_sliding_window: as many windows as the overlap asks for, evenly
            spaced. `monai` is dense_patch_slices: every int(window × (1 - overlap)) voxels, the last window
            shifted in.
        overlap: Share of a window, below 1.
    """
    last = image_size - roi_size
    if tiling == "monai":
        return [*range(0, last, max(int(roi_size * (1 - overlap)), 1)), last]
    gaps = math.ceil(last / (roi_size * (1 - overlap)))
    # With overlaps near 1, nnU-Net rounds several steps to one voxel.
    return list(dict.fromkeys(round(last / gaps * n) for n in range(gaps + 1))) if gaps else [0]


@lru_cache(maxsize=8)
def gaussian_importance_map(roi_size: tuple[int, ...], tiling: Tiling) -> Tensor:
    """Weights of a window's voxels, of the window's shape, float32, at most 1.

    Args:
        roi_size: Sides of the window.
        tiling: `nnunet` is compute_gaussian: a filtered point at side // 2, zeros raised to the least other
            weight. `monai` is compute_importance_map: the Gaussian itself, about the exact middle, raised to
            at least `MIN_WEIGHT`.
    """
    profile = _filtered_point if tiling == "nnunet" else _gaussian
    weights = reduce(np.multiply.outer, map(profile, roi_size)).astype(np.float32)
    least = weights[weights > 0].min() if tiling == "nnunet" else max(weights.min(), MIN_WEIGHT)
    return torch.from_numpy(weights.clip(least))


def _filtered_point(side: int) -> NDArray[np.float64]:
    point = np.zeros(side)
    point[side // 2] = 1
    filtered = gaussian_filter1d(point, SIGMA_SCALE * side, mode="constant")
    return filtered / filtered.max()


def _gaussian(side: int) -> NDArray[np.float64]:
    offset = np.arange(side) - (side - 1) / 2
    return np.exp(-(offset**2) / (2 * (SIGMA_SCALE * side) ** 2))


def _pad(image: Tensor, roi_size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """The image at least as large as the window, an odd voxel behind, and where the image lies in it."""
    missing = [max(w - n, 0) for n, w in zip(image.shape[2:], roi_size, strict=True)]
    inside = tuple(slice(m // 2, m // 2 + n) for n, m in zip(image.shape[2:], missing, strict=True))
    pads = [n for m in reversed(missing) for n in (m // 2, m - m // 2)]
    return F.pad(image, pads, value=PADDING_VALUE) if any(missing) else image, inside


@dataclass(frozen=True)
class Predictor:
    """How a network is applied to a volume.

    Args:
        patch: Window (z, y, x); a volume of that shape is predicted whole, a smaller one padded with zeros.
        tiling: How windows lie in a larger volume, and their weights: nnU-Net's or MONAI's.
        overlap: Share of a window that the next one repeats (nnU-Net 0.5, Auto3DSeg 0.625).
        mirror: Axes of (z, y, x) along which each window is mirrored too; the logits of all combinations
            are averaged.
        precision: Arithmetic of the network; logits are averaged in float32.
        axes: The network's own axes.
    """

    patch: Shape
    tiling: Tiling = "nnunet"
    overlap: float = 0.5
    mirror: tuple[int, ...] = ()
    precision: Precision = "float32"
    axes: Axes = field(default_factory=Axes)

    @classmethod
    def of(cls, card: Card, *, mirror: bool = False, precision: Precision = "float32") -> Predictor:
        """By a member's card: its patch, windows, axes, and those along which it may be mirrored."""
        return cls(
            card.patch,
            card.window.tiling,
            card.window.overlap,
            mirror=card.mirror_axes if mirror else (),
            precision=precision,
            axes=card.axes,
        )

    @torch.no_grad()
    def __call__(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Logits (1, K, z, y, x) of a volume, float32, averaged over windows and mirrorings.

        Args:
            network: In evaluation mode, (1, C, z, y, x) → (1, K, z, y, x), or in its own axes.
            image: (1, C, z, y, x) on the network's device.
        """
        mirrored = [2 + self.axes.inverse[axis] for axis in self.mirror]
        flips = [axes for n in range(1, len(mirrored) + 1) for axes in combinations(mirrored, n)]

        def run(window: Tensor) -> Tensor:
            return network(window.contiguous(memory_format=torch.channels_last_3d)).float()

        def predict(window: Tensor) -> Tensor:
            with autocast(window.device, self.precision):
                total = run(window)
                for axes in flips:
                    total = total + run(window.flip(axes)).flip(axes)
            return total / (1 + len(flips))

        image = self.axes.to_network(image)
        roi_size = self.axes.shape_to_network(self.patch)
        return self.axes.from_network(sliding_window(predict, image, roi_size, self.tiling, self.overlap))
