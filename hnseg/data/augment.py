"""Training augmentation that TorchIO does not bring. The mix itself is composed in conf/augment/."""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform


class RandomScaleShift(RandomTransform, tio.IntensityTransform):
    """Multiplies and shifts the intensities of each channel by random amounts of its own.

    Acts on normalised channels, so the amounts are in units of a channel's standard deviation
    (Auto3DSeg's RandScaleIntensity ±0.3 and RandShiftIntensity ±0.1).

    Args:
        scale: The factor is drawn from [1 - scale, 1 + scale].
        shift: The offset is drawn from [-shift, shift].
    """

    def __init__(self, *, scale: float = 0.3, shift: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale, self.shift = scale, shift

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for image in self.get_images(subject):
            channels = (image.num_channels, 1, 1, 1)
            factor = 1 + self.scale * (2 * torch.rand(channels) - 1)
            offset = self.shift * (2 * torch.rand(channels) - 1)
            image.set_data(image.data * factor + offset)
        return subject
