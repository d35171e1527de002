"""From HU and SUV to channels, one TorchIO transform a step; `InputSpec` puts them in order."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torchio as tio
from torch import Tensor

from hnseg.data.normalise import Normalise

Power = Literal["square", "cube_root"]
_EXPONENTS = {"square": 2, "cube_root": 1 / 3}


class _Interval(tio.transforms.Transform):
    """A transform that is told two bounds."""

    def __init__(self, low: float, high: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high
        self.args_names = ["low", "high"]


class WindowCT(_Interval):
    """Clips CT to [low, high] HU and scales it to [0, 1] (paper section 2.3)."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        ct = subject["ct"]
        ct.set_data((ct.data.float().clamp(self.low, self.high) - self.low) / (self.high - self.low))
        return subject


class ScalePET(tio.transforms.Transform):
    """PET to [0, 1].

    Args:
        rule: `minmax` over the crop (paper), or `suv`, which divides by a fixed SUV and clips, so that
            the absolute scale is kept.
        upper: SUV that becomes 1 under `suv`.
    """

    def __init__(self, rule: Literal["minmax", "suv"], upper: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule, self.upper = rule, upper
        self.args_names = ["rule", "upper"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        pet = subject["pet"]
        # The B-spline undershoots beside hot spots; negative activity means nothing.
        suv = pet.data.float().clamp_min(0)
        pet.set_data((suv / self.upper).clamp_max(1) if self.rule == "suv" else _minmax(suv))
        return subject


class MinMax(tio.transforms.Transform):
    """Each modality to [0, 1] by its extremes in the ROI (the authors' second scaling)."""

    def __init__(self, modalities: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.modalities = modalities
        self.args_names = ["modalities"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for name in self.modalities:
            subject[name].set_data(_minmax(subject[name].data.float()))
        return subject


class Enhance(tio.transforms.Transform):
    """A modality x in [0, 1] → the channels [x, *powers], for instance [x, x², x^(1/3)].

    The powers are taken on [0, 1]: on [-1, 1] the square is not monotonic (two tissues would share a
    value) and the cube root of a negative is no real power.

    Args:
        modality: `ct` or `pet`.
        powers: What is added to x, in order.
    """

    def __init__(
        self, modality: str = "ct", powers: tuple[Power, ...] = ("square", "cube_root"), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.modality, self.powers = modality, powers
        self.args_names = ["modality", "powers"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        image = subject[self.modality]
        # The B-spline leaves [0, 1] a little where a windowed image is sampled again.
        unit = image.data.clamp(0, 1)
        image.set_data(torch.cat([unit, *(unit ** _EXPONENTS[power] for power in self.powers)]))
        return subject


class RangeCT(_Interval):
    """CT channels from [0, 1] to [low, high], channel by channel after the powers."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        ct = subject["ct"]
        ct.set_data(ct.data * (self.high - self.low) + self.low)
        return subject


class StackChannels(tio.transforms.Transform):
    """Joins the modalities to one image `image` (C, z, y, x), so that augmentation treats them alike."""

    def __init__(self, modalities: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.modalities = modalities
        self.args_names = ["modalities"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        stacked = torch.cat([subject[name].data for name in self.modalities])
        affine = subject[self.modalities[0]].affine
        for name in ("ct", "pet"):
            if name in subject:
                subject.remove_image(name)
        subject.add_image(tio.ScalarImage(tensor=stacked, affine=affine), "image")
        return subject


class NormaliseChannels(tio.transforms.Transform):
    """One `Normalise` for each channel of `image`."""

    def __init__(self, schemes: tuple[Normalise, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schemes = schemes
        self.args_names = ["schemes"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        image = subject["image"]
        channels = zip(self.schemes, image.data, strict=True)
        image.set_data(torch.stack([normalise(channel) for normalise, channel in channels]))
        return subject


def _minmax(x: Tensor) -> Tensor:
    low, high = x.min(), x.max()
    return (x - low) / (high - low).clamp_min(1e-8)
