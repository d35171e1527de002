"""One network, one volume → logits: whole where it fits the patch, a sliding window otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from hnseg.hardware import Precision, autocast
from hnseg.inference.axes import Axes
from hnseg.inference.windows import Tiling, slide

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
