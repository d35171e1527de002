"""One network, one volume → logits: whole where it fits the patch, a sliding window otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from hnseg.devices import Precision, autocast

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Axes:
    """How the axes of an imported network stand to (z, y, x).

    The volume is turned before it is cut into windows, since neither MONAI's tiles nor the padding of an
    odd number of voxels are the same from both ends.

    Args:
        order: The network's axes, each as one of ours: (2, 1, 0) is a network that sees (x, y, z).
        flip: Those of the network's axes that run against ours.
    """

    order: Triple = (0, 1, 2)
    flip: tuple[int, ...] = ()

    @classmethod
    def of(cls, card: dict[str, Any]) -> Axes:
        """Those of a member; without the card's key `axes`, hnseg's own."""
        return cls(**{key: tuple(value) for key, value in card.get("axes", {}).items()})

    def to_network(self, image: Tensor) -> Tensor:
        """(B, C, z, y, x) → (B, C, *the network's axes)."""
        return image.permute(0, 1, *(2 + axis for axis in self.order)).flip([2 + axis for axis in self.flip])

    def from_network(self, logits: Tensor) -> Tensor:
        """(B, K, *the network's axes) → (B, K, z, y, x)."""
        return logits.flip([2 + axis for axis in self.flip]).permute(0, 1, *(2 + axis for axis in self._back))

    def shape_to_network(self, shape: Triple) -> Triple:
        """A patch (z, y, x) as the network has it."""
        z, y, x = (shape[axis] for axis in self.order)
        return z, y, x

    def shape_from_network(self, shape: Triple) -> Triple:
        """The network's patch as (z, y, x)."""
        z, y, x = (shape[axis] for axis in self._back)
        return z, y, x

    def axes_to_network(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of ours, for instance to mirror, by their places in the network."""
        return tuple(self._back[axis] for axis in axes)

    @property
    def _back(self) -> Triple:
        z, y, x = (self.order.index(axis) for axis in range(3))
        return z, y, x


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


OURS = Axes()


@dataclass(frozen=True)
class Predictor:
    """How a volume is shown to a network.

    Args:
        patch: Window (z, y, x); a volume of that shape is shown whole, a smaller one padded with zeros.
        tiling: How windows lie in a larger volume, and their weights: nnU-Net's or MONAI's.
        overlap: Share of a window that the next one repeats (nnU-Net 0.5, Auto3DSeg 0.625).
        mirror: Axes of (z, y, x) along which each window is mirrored too; the logits of all combinations
            are averaged.
        precision: Arithmetic of the network; logits are averaged in float32. What it moves,
            `hnseg.hardware.pick_precision` says.
        axes: The network's own axes.
    """

    patch: tuple[int, int, int]
    tiling: Tiling = "nnunet"
    overlap: float = 0.5
    mirror: tuple[int, ...] = ()
    precision: Precision = "float32"
    axes: Axes = OURS

    @classmethod
    def of(cls, card: dict[str, Any], *, mirror: bool = False, precision: Precision = "float32") -> Predictor:
        """A member's own way: its patch, windows and axes.

        Args:
            card: Of the member.
            mirror: Average over mirrorings, along the axes that the member was trained with.
            precision: Arithmetic of the network.
        """
        return cls(
            tuple(card["patch"]),
            **card.get("window", {}),
            mirror=tuple(card.get("mirror_axes", (0, 1, 2))) if mirror else (),
            precision=precision,
            axes=Axes.of(card),
        )

    @torch.no_grad()
    def __call__(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Logits of one volume.

        Args:
            network: In evaluation mode, (1, C, z, y, x) → (1, K, z, y, x), or in its own axes.
            image: (1, C, z, y, x) on the network's device.

        Returns:
            (1, K, z, y, x) float32, averaged over windows and mirrorings.
        """
        window = self.axes.shape_to_network(self.patch)
        mirrored = [2 + axis for axis in self.axes.axes_to_network(self.mirror)]
        flips = [axes for n in range(len(mirrored) + 1) for axes in combinations(mirrored, n)]

        def run(shown: Tensor) -> Tensor:
            with autocast(shown.device, self.precision):
                total = self._show(network, shown)
                for axes in flips[1:]:
                    total = total + self._show(network, shown.flip(axes)).flip(axes)
            return total / len(flips)

        turned = self.axes.to_network(image)
        whole = tuple(turned.shape[2:]) == window
        logits = run(turned) if whole else slide(run, turned, window, self.tiling, self.overlap)
        return self.axes.from_network(logits)

    @staticmethod
    def _show(network: Callable[[Tensor], Tensor], shown: Tensor) -> Tensor:
        return network(shown.contiguous(memory_format=torch.channels_last_3d)).float()
