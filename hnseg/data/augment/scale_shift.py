"""Brightness: intensities multiplied and shifted."""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform


class RandomScaleShift(RandomTransform, tio.IntensityTransform):
    """Multiplies and shifts intensities by random amounts.

    nnU-Net's MultiplicativeBrightnessTransform (a factor for each channel), Auto3DSeg's
    RandScaleIntensity and RandShiftIntensity (one for all channels). Acts on normalised channels, so
    shifts are in their units.

    Args:
        scale: The factor is drawn from [1 - scale, 1 + scale].
        shift: The offset is drawn from [-shift, shift].
        per_channel: Draw for each channel anew.
    """

    def __init__(
        self, *, scale: float = 0.0, shift: float = 0.0, per_channel: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.scale, self.shift, self.per_channel = scale, shift, per_channel

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for image in self.get_images(subject):
            channels = (image.num_channels if self.per_channel else 1, 1, 1, 1)
            factor = 1 + self.scale * (2 * torch.rand(channels) - 1)
            offset = self.shift * (2 * torch.rand(channels) - 1)
            factor, offset = (amount.to(image.data.device, non_blocking=True) for amount in (factor, offset))
            image.set_data(image.data * factor + offset)
        return subject
