"""The transforms of a training, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torchio as tio


class Compose(tio.Compose):
    """Composes transforms without copying the subject in between, as TorchIO does before each.

    Args:
        transforms: In their order; `RandomPatchAffine` first, if it is there.
        device: `cpu` for the loaders' processes, `cuda` for the device that trains: see
            `hnseg.data.augmented`.
    """

    def __init__(self, transforms: Sequence[tio.Transform], device: Literal["cpu", "cuda"] = "cpu") -> None:
        super().__init__(transforms, copy=False)
        self.device = device
        for transform in self.transforms:
            transform.copy = False
