"""One network, one volume → logits: whole where it fits the patch, a sliding window otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from hnseg.hardware import Precision, autocast


@dataclass(frozen=True)
class Predictor:
    """How a volume is shown to a network.

    Args:
        patch: Window (z, y, x); a volume of that shape is shown whole, a smaller one padded with zeros.
        overlap: Share of a window that the next one repeats (nnU-Net 0.5, Auto3DSeg 0.625).
        mirror: Average over all eight mirrorings.
        precision: Arithmetic of the network; logits are averaged in float32.
    """

    patch: tuple[int, int, int]
    overlap: float = 0.5
    mirror: bool = False
    precision: Precision = "float32"

    @torch.no_grad()
    def __call__(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Logits of one volume.

        Args:
            network: In evaluation mode, (1, C, z, y, x) → (1, K, z, y, x).
            image: (1, C, z, y, x) on the network's device.

        Returns:
            (1, K, z, y, x) float32, averaged over windows (Gaussian weights) and mirrorings.
        """
        flips = _mirrorings() if self.mirror else [[]]
        total = torch.zeros(())
        for axes in flips:
            logits = self._windows(network, image.flip(axes) if axes else image)
            total = total.to(logits.device) + (logits.flip(axes) if axes else logits)
        return total / len(flips)

    def _windows(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        def run(window: Tensor) -> Tensor:
            with autocast(window.device, self.precision):
                return network(window.contiguous(memory_format=torch.channels_last_3d)).float()

        if tuple(image.shape[2:]) == self.patch:
            return run(image)
        stitched = sliding_window_inference(image, self.patch, 1, run, overlap=self.overlap, mode="gaussian")
        assert isinstance(stitched, Tensor)
        return stitched


def _mirrorings() -> list[list[int]]:
    return [list(axes) for n in range(4) for axes in combinations((2, 3, 4), n)]
