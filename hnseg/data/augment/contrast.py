"""Contrast: intensities spread about their mean."""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torch import Tensor
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.draw import about_one


class RandomContrast(RandomTransform, tio.IntensityTransform):
    """Spreads or narrows each channel about its mean, within its range (nnU-Net's ContrastTransform).

    Args:
        factor: Range of the factor, drawn for each channel, below 1 as often as above it.
    """

    def __init__(self, *, factor: tuple[float, float] = (0.75, 1.25), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for image in self.get_images(subject):
            image.set_data(torch.stack([spread(channel, about_one(*self.factor)) for channel in image.data]))
        return subject


def spread(channel: Tensor, factor: float) -> Tensor:
    """Distances from the mean times `factor`, clipped to the channel's range before."""
    mean = channel.mean()
    low, high = channel.aminmax()
    return ((channel - mean) * factor + mean).clamp(low, high)
