"""Augmentation of intensities: noise, blur, brightness, contrast, gamma, low resolution, dropout.

Each transform draws one row of parameters a channel, (C, n), with NaN where a channel stays as it is, and
changes all channels of a batch that it acts on at once, as (K, z, y, x) with parameters (K, n).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hnseg.data.augment.transform import Sample, Transform

Range = tuple[float, float]
Parameters = NDArray[np.float64]
_EPS = 1e-7  # range or standard deviation of a channel that is taken for constant


@dataclass(kw_only=True)
class IntensityTransform(Transform):
    """Changes channels, each on its own.

    Args:
        p: Probability that it acts on a sample.
        p_channel: Probability of each channel, once it acts.
        per_channel: Draw parameters for each channel; otherwise all share them.
    """

    p_channel: float = 1.0
    per_channel: bool = True

    @abstractmethod
    def draw_channel(self, rng: np.random.Generator) -> Sequence[float]:
        """Parameters of one channel."""

    @abstractmethod
    def change(self, channels: Tensor, parameters: Parameters) -> Tensor:
        """Channels (K, z, y, x) changed by their parameters (K, n)."""

    def draw(self, rng: np.random.Generator, channels: int) -> Parameters:
        """(C, n), NaN for channels that stay as they are."""
        acts = (rng.random() < self.p) & (rng.random(channels) < self.p_channel)
        rows = [self.draw_channel(rng) for _ in range(channels if self.per_channel else 1)]
        return np.where(acts[:, None], np.broadcast_to(rows, (channels, len(rows[0]))), np.nan)

    def apply(self, samples: Sequence[Sample], parameters: Sequence[Parameters]) -> None:
        self.apply_to_images([sample.image for sample in samples], parameters)

    def apply_to_images(self, images: Sequence[Tensor] | Tensor, parameters: Sequence[Parameters]) -> None:
        """Changes images (C, z, y, x) of one size, or a batch (B, C, z, y, x), in place."""
        channels, rows = [channel for image in images for channel in image], np.concatenate(parameters)
        acting = np.flatnonzero(~np.isnan(rows[:, 0]))
        if len(acting):
            changed = self.change(torch.stack([channels[i] for i in acting]), rows[acting])
            for i, channel in zip(acting, changed, strict=True):
                channels[i].copy_(channel)


def per_channel(values: Sequence[float] | Parameters, channels: Tensor) -> Tensor:
    """One value a channel, (K, 1, 1, 1), on the channels' device."""
    column = torch.as_tensor(np.asarray(values), dtype=channels.dtype)[:, None, None, None]
    return column.to(channels.device, non_blocking=True)


def contrast_factor(rng: np.random.Generator, low: float, high: float) -> float:
    """A factor that is below 1 as often as above it, however far either bound is (nnU-Net's BGContrast)."""
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


@dataclass(kw_only=True)
class RandomNoise(IntensityTransform):
    """Adds Gaussian noise of mean 0, with one standard deviation for all channels.

    The noise follows from a seed that is drawn with it; devices of another kind make other noise of it.
    """

    std: Range = (0.0, 0.25)
    per_channel: bool = False

    def draw_channel(self, rng: np.random.Generator) -> Sequence[float]:
        return [rng.uniform(*self.std)]

    def draw(self, rng: np.random.Generator, channels: int) -> Parameters:
        return np.column_stack([super().draw(rng, channels), rng.integers(2**31, size=channels)])

    def change(self, channels: Tensor, parameters: Parameters) -> Tensor:
        for channel, (std, seed) in zip(channels, parameters, strict=True):
            generator = torch.Generator(channel.device).manual_seed(int(seed))
            channel += torch.randn(channel.shape, device=channel.device, generator=generator).mul_(std)
        return channels


@dataclass(kw_only=True)
class RandomBlur(IntensityTransform):
    """Blurs by a Gaussian with a standard deviation along each axis, voxels.

    Args:
        sigma: Its range.
        kernel: `sampled`: the density at each voxel, out to 3 sigma; the border is mirrored (nnU-Net's
            GaussianBlurTransform). `integrated`: the mass over each voxel, out to 4 sigma; outside is 0
            (MONAI's RandGaussianSmooth, which Auto3DSeg uses).
    """

    sigma: Range = (0.5, 1.0)
    kernel: Literal["sampled", "integrated"] = "sampled"

    def draw_channel(self, rng: np.random.Generator) -> Sequence[float]:
        return [rng.uniform(*self.sigma) for _ in range(3)]

    def change(self, channels: Tensor, parameters: Parameters) -> Tensor:
        return blur(channels, parameters, self.kernel)


def blur(channels: Tensor, sigmas: Parameters, kernel: Literal["sampled", "integrated"]) -> Tensor:
    """Channels (K, z, y, x) blurred by Gaussians of standard deviations (K, 3) along z, y and x."""
    weigh, border = (sampled, "reflect") if kernel == "sampled" else (integrated, "constant")
    for axis in (1, 2, 3):
        kernels = [weigh(sigma) for sigma in sigmas[:, axis - 1]]
        radius, n = max(len(weights) for weights in kernels) // 2, channels.shape[axis]
        wide = np.stack([np.pad(weights, radius - len(weights) // 2) for weights in kernels], axis=1)
        pads = [0] * 6
        pads[2 * (3 - axis) : 2 * (3 - axis) + 2] = [radius, radius]
        padded = F.pad(channels, pads, mode=border)
        # Shifted sums: for so few weights many times faster than torch's convolution on a processor.
        channels = padded.narrow(axis, 0, n) * per_channel(wide[0], padded)
        for start, weights in enumerate(wide[1:], start=1):
            channels.addcmul_(padded.narrow(axis, start, n), per_channel(weights, padded))
    return channels


def sampled(sigma: float) -> NDArray[np.float32]:
    """nnU-Net's kernel, as wide as the odd number nearest to 6 sigma + 0.5."""
    radius = int((6 * sigma + 0.5) / 2)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).numpy()


def integrated(sigma: float) -> NDArray[np.float32]:
    """MONAI's kernel."""
    radius = int(max(4 * sigma, 0.5) + 0.5)
    edges = (torch.arange(-radius, radius + 2) - 0.5) / (sigma * 2**0.5)
    return (edges.erf().diff() / 2).numpy()


@dataclass(kw_only=True)
class RandomScaleShift(IntensityTransform):
    """Multiplies and shifts intensities.

    nnU-Net's MultiplicativeBrightnessTransform (a factor for each channel), Auto3DSeg's RandScaleIntensity
    and RandShiftIntensity (one for all channels). Acts on normalised channels, so shifts are in their units.

    Args:
        scale: The factor is drawn from [1 - scale, 1 + scale].
        shift: The offset is drawn from [-shift, shift].
    """

    scale: float = 0.0
    shift: float = 0.0

    def draw_channel(self, rng: np.random.Generator) -> Sequence[float]:
        return [1 + rng.uniform(-self.scale, self.scale), rng.uniform(-self.shift, self.shift)]

    def change(self, channels: Tensor, parameters: Parameters) -> Tensor:
        factor, offset = (per_channel(column, channels) for column in parameters.T)
        return channels * factor + offset


@dataclass(kw_only=True)
class RandomContrast(IntensityTransform):
    """Multiplies distances from the mean, clipped to the range before (nnU-Net's ContrastTransform)."""

    factor: Range = (0.75, 1.25)

    def draw_channel(self, rng: np.random.Generator) -> Sequence[float]:
        return [contrast_factor(rng, *self.factor)]

    def change(self, channels: Tensor, parameters: Parameters) -> Tensor:
        mean, low, high = (measure(channels) for measure in (_mean, _min, _max))
        return ((channels - mean) * per_channel(parameters[:, 0], channels) + mean).clamp(low, high)


@dataclass(kw_only=True)
class RandomGamma(IntensityTransform):
    """A power of each channel (or of its negative, `inverted`) within its range (nnU-Net's GammaTransform).

    Mean and standard deviation stay.
    """

    gamma: Range = (0.7, 1.5)
    inverted: bool = False

    def draw_channel(self, rng: np.random.Generator) -> Sequence[float]:
        return [contrast_factor(rng, *self.gamma)]

    def change(self, channels: Tensor, parameters: Parameters) -> Tensor:
        sign = -1 if self.inverted else 1
        x = sign * channels
        low, extent = _min(x), _max(x) - _min(x)
        power = ((x - low) / extent.clamp_min(_EPS)) ** per_channel(parameters[:, 0], x) * extent
        return sign * ((power - _mean(power)) * (_std(x) / _std(power).clamp_min(_EPS)) + _mean(x))


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3), keepdim=True)


def _std(x: Tensor) -> Tensor:
    return x.std(dim=(1, 2, 3), keepdim=True)


def _min(x: Tensor) -> Tensor:
    return x.amin(dim=(1, 2, 3), keepdim=True)


def _max(x: Tensor) -> Tensor:
    return x.amax(dim=(1, 2, 3), keepdim=True)


@dataclass(kw_only=True)
class RandomLowResolution(IntensityTransform):
    """Samples a channel with `scale` times the voxels along every axis, and interpolates it back.

    nnU-Net's SimulateLowResolutionTransform; on scans, as coarser scanners would have given CT and PET.
    """

    scale: Range = (0.5, 1.0)

    def draw_channel(self, rng: np.random.Generator) -> Sequence[float]:
        return [rng.uniform(*self.scale)]

    def change(self, channels: Tensor, parameters: Parameters) -> Tensor:
        changed = []
        for channel, scale in zip(channels, parameters[:, 0], strict=True):
            coarse = [round(n * scale) for n in channel.shape]
            sampled = F.interpolate(channel[None, None], coarse, mode="nearest-exact")
            changed.append(F.interpolate(sampled, channel.shape, mode="trilinear")[0, 0])
        return torch.stack(changed)


@dataclass(kw_only=True)
class RandomDropout(Transform):
    """Empties PET: 0 SUV everywhere (modality dropout), so that the network does not lean on it alone.

    Acts on scans: what the network sees is what its input chain makes of a PET without activity. A stage that
    sees CT alone stays as it is.
    """

    def draw(self, rng: np.random.Generator, channels: int) -> bool:
        return bool(rng.random() < self.p)

    def apply(self, samples: Sequence[Sample], parameters: Sequence[bool]) -> None:
        for sample, acts in zip(samples, parameters, strict=True):
            if acts:
                sample.image[1:] = 0
