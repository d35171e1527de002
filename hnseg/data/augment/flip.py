"""Mirroring, on whichever device the images are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform


class RandomFlip(RandomTransform, tio.SpatialTransform):
    """Mirrors every image of a subject, as TorchIO's of the same name, which does so in NumPy.

    Args:
        axes: Axes (z, y, x) that may be mirrored, each half of the time.
    """

    def __init__(self, *, axes: Sequence[int] = (0, 1, 2), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axes = tuple(axes)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        drawn = (torch.rand(3) < 0.5).tolist()
        mirrored = [axis + 1 for axis in self.axes if drawn[axis]]
        for image in self.get_images(subject) if mirrored else ():
            image.set_data(image.data.flip(mirrored))
        return subject
