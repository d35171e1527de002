"""Low resolution: a channel as a coarser scanner would have given it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import torchio as tio
from torch import Tensor
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.draw import coin, uniform


class RandomLowResolution(RandomTransform, tio.IntensityTransform):
    """Takes voxels away from a channel and interpolates them (nnU-Net's SimulateLowResolutionTransform).

    Args:
        scale: Range of the factor of the number of voxels along every axis.
        p_channel: Probability of each channel, once the transform acts.
    """

    def __init__(
        self, *, scale: tuple[float, float] = (0.5, 1.0), p_channel: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.scale, self.p_channel = scale, p_channel

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for image in self.get_images(subject):
            data = image.data.clone()
            for channel in range(len(data)):
                if coin(self.p_channel):
                    data[channel] = coarsen(data[channel], uniform(*self.scale))
            image.set_data(data)
        return subject


def coarsen(channel: Tensor, scale: float) -> Tensor:
    """A channel (z, y, x) with `scale` times the voxels along each axis, and linearly back."""
    few = [round(n * scale) for n in channel.shape]
    coarse = F.interpolate(channel[None, None], few, mode="nearest-exact")
    return F.interpolate(coarse, channel.shape, mode="trilinear")[0, 0]
