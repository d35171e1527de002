"""Gamma: a power of the intensities within their range."""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torch import Tensor
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.draw import about_one

_LEAST = 1e-7  # range or deviation of a channel that is taken for constant


class RandomGamma(RandomTransform, tio.IntensityTransform):
    """A power of each channel within its range; mean and deviation stay (nnU-Net's GammaTransform).

    TorchIO's own keeps neither range nor statistics.

    Args:
        gamma: Range of the exponent, drawn for each channel, below 1 as often as above it.
        inverted: Take the power of the negative image.
    """

    def __init__(
        self, *, gamma: tuple[float, float] = (0.7, 1.5), inverted: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.gamma, self.inverted = gamma, inverted

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        sign = -1 if self.inverted else 1
        for image in self.get_images(subject):
            bent = [sign * bend(sign * channel, about_one(*self.gamma)) for channel in image.data]
            image.set_data(torch.stack(bent))
        return subject


def bend(channel: Tensor, gamma: float) -> Tensor:
    """((x - min) / range) ** gamma, brought back to the mean and standard deviation before."""
    low, high = channel.aminmax()
    bent = ((channel - low) / (high - low).clamp_min(_LEAST)).pow(gamma) * (high - low)
    return (bent - bent.mean()) * (channel.std() / bent.std().clamp_min(_LEAST)) + channel.mean()
