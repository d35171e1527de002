"""Augmentation of intensities: noise, blur, brightness, contrast, gamma, low resolution, dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchio as tio
from torch import Tensor
from torchio.transforms.augmentation import RandomTransform


def uniform(low: float, high: float) -> float:
    """A number from [low, high)."""
    return torch.empty(1).uniform_(low, high).item()


def coin(probability: float) -> bool:
    """True with this probability."""
    return torch.rand(1).item() < probability


def about_one(low: float, high: float) -> float:
    """A factor that is below 1 as often as above it, however far either bound is (nnU-Net's BGContrast)."""
    return uniform(low, 1) if coin(0.5) else uniform(1, high)


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


class RandomDropout(RandomTransform, tio.IntensityTransform):
    """Empties a modality: every voxel becomes 0, for PET no activity anywhere (modality dropout).

    Meant for the scan in HU and SUV: what the network sees is then what its input chain makes of a PET
    without activity. That is one value throughout each channel, whichever normalisation follows. A stage
    that does not see the modality stays as it is.

    Args:
        modality: What is emptied.
    """

    def __init__(self, *, modality: str = "pet", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.modality = modality

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        if self.modality not in subject:
            return subject
        image = subject[self.modality]
        image.set_data(torch.zeros_like(image.data))
        return subject


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
