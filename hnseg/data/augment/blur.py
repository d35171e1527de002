"""Gaussian blur, with the kernels and borders of nnU-Net and of MONAI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchio as tio
from torch import Tensor
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.draw import coin, uniform


class RandomChannelBlur(RandomTransform, tio.IntensityTransform):
    """Blurs each channel by its own Gaussian; the border is mirrored (nnU-Net's GaussianBlurTransform).

    Args:
        sigma: Range of the standard deviation in voxels, drawn for each channel and axis.
        p_channel: Probability of each channel, once the transform acts.
    """

    def __init__(
        self, *, sigma: tuple[float, float] = (0.5, 1.0), p_channel: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sigma, self.p_channel = sigma, p_channel

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for image in self.get_images(subject):
            data = image.data.clone()
            for channel in range(len(data)):
                if coin(self.p_channel):
                    kernels = [sampled_gaussian(uniform(*self.sigma)) for _ in range(3)]
                    data[channel : channel + 1] = convolve(data[channel : channel + 1], kernels, "reflect")
            image.set_data(data)
        return subject


class RandomBlur(RandomTransform, tio.IntensityTransform):
    """Blurs all channels by one Gaussian; outside is 0 (Auto3DSeg's RandGaussianSmooth).

    Args:
        sigma: Range of the standard deviation in voxels, drawn for each axis.
    """

    def __init__(self, *, sigma: tuple[float, float] = (0.5, 1.0), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigma = sigma

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for image in self.get_images(subject):
            kernels = [integrated_gaussian(uniform(*self.sigma)) for _ in range(3)]
            image.set_data(convolve(image.data, kernels, "constant"))
        return subject


def sampled_gaussian(sigma: float) -> Tensor:
    """nnU-Net's kernel: the density at each voxel, as wide as the odd number nearest to 6 sigma + 0.5."""
    width = 6 * sigma + 0.5
    radius = int(width / 2)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def integrated_gaussian(sigma: float) -> Tensor:
    """MONAI's kernel: the mass over each voxel, out to 4 sigma."""
    radius = int(max(4 * sigma, 0.5) + 0.5)
    edges = (torch.arange(-radius, radius + 2) - 0.5) / (sigma * 2**0.5)
    return edges.erf().diff() / 2


def convolve(image: Tensor, kernels: Sequence[Tensor], border: str) -> Tensor:
    """An image (C, z, y, x) with one kernel along each axis.

    Args:
        image: The image.
        kernels: Weights along z, y and x.
        border: Mode of torch's `pad`.
    """
    for axis, kernel in enumerate(kernels, start=1):
        n, radius = image.shape[axis], len(kernel) // 2
        pads = [0] * 6
        pads[2 * (3 - axis) : 2 * (3 - axis) + 2] = [radius, radius]
        padded = F.pad(image[None], pads, mode=border)[0]
        # Shifted sums: for so few weights many times faster than torch's convolution on a processor.
        image = padded.narrow(axis, 0, n) * kernel[0]
        for place, weight in enumerate(kernel[1:].tolist(), start=1):
            image.add_(padded.narrow(axis, place, n), alpha=weight)
    return image
