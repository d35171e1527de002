"""Noise, on whichever device the image is."""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.draw import uniform


class RandomNoise(RandomTransform, tio.IntensityTransform):
    """Adds Gaussian noise of mean 0, as TorchIO's of the same name, whose noise is the processor's.

    The noise follows from torch's own seed; that of another device is other numbers alike.

    Args:
        std: Range of the standard deviation.
    """

    def __init__(self, *, std: tuple[float, float] = (0.0, 0.25), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.std = std

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for image in self.get_images(subject):
            std, seed = uniform(*self.std), int(torch.randint(2**31, (1,)))
            data = image.data
            noise = torch.randn(data.shape, device=data.device, generator=_generator(data.device, seed))
            image.set_data(noise.mul_(std).add_(data))
        return subject


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)
