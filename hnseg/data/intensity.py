"""From HU and SUV to the network's input channels, as TorchIO transforms.

The same chain runs in training and inference. It is described by an `InputSpec`, which travels in
the checkpoint, so that a trained network knows how its input was made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torchio as tio
from torch import Tensor

from hnseg.data.normalise import Normalise
from hnseg.data.sampling import STUDY, Sampling

Power = Literal["square", "cube_root"]
_EXPONENTS = {"square": 2, "cube_root": 1 / 3}
_NAMES = {"square": "²", "cube_root": "^(1/3)"}


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


@dataclass(frozen=True)
class InputSpec:
    """How a network's input is made from a study's CT in HU and PET in SUV.

    Args:
        modalities: ("ct",) for the head stage, ("ct", "pet") after it.
        sampling: What the volumes are cut from, and what lies outside it.
        ct_window: HU that become 0 and 1; None leaves CT as it is: already in [0, 1] where it comes from
            the head crop, HU where a foreign network wants HU.
        ct_range: What 0 and 1 become after the powers; unused without a window on studies.
        cte: Enhancement: powers of x beside x; which ones is said by `ct_powers` and `pet_powers`.
        pet: `minmax` over the crop, `suv` against a fixed upper bound, or `raw`.
        pet_upper: That bound, SUV.
        minmax_again: Scale both modalities by their extremes in the ROI, before the powers.
        normalise: On top, one for each channel in the order of the channels.
        pad_to: Shape (z, y, x) to which the ROI is padded after normalisation, with zeros.
        ct_powers: What enhancement adds to CT; the paper's are x² and x^(1/3).
        pet_powers: What it adds to PET, which must be in [0, 1] by then.
    """

    modalities: tuple[str, ...] = ("ct", "pet")
    sampling: Sampling = STUDY
    ct_window: tuple[float, float] | None = (-110.0, 190.0)
    ct_range: tuple[float, float] = (-1.0, 1.0)
    cte: bool = False
    pet: Literal["minmax", "suv", "raw"] = "minmax"
    pet_upper: float = 20.0
    minmax_again: bool = False
    normalise: tuple[Normalise, ...] = ()
    pad_to: tuple[int, int, int] | None = None
    ct_powers: tuple[Power, ...] = ("square", "cube_root")
    pet_powers: tuple[Power, ...] = ()

    def __post_init__(self) -> None:
        if not self.normalise:
            object.__setattr__(self, "normalise", (Normalise("none"),) * self.channels)
        if len(self.normalise) != self.channels:
            raise ValueError(f"normalise has {len(self.normalise)} entries for {self.channels} channels")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> InputSpec:
        """Reads what `to_dict` wrote."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        plain["sampling"] = Sampling.from_dict(fields["sampling"])
        plain["normalise"] = tuple(Normalise.from_dict(one) for one in fields["normalise"])
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for the checkpoint and the bundle."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in own.items()}
        plain["sampling"] = self.sampling.to_dict()
        plain["normalise"] = [one.to_dict() for one in self.normalise]
        return plain

    @property
    def channels(self) -> int:
        """Number of input channels of the network."""
        return len(self.channel_names)

    @property
    def channel_names(self) -> list[str]:
        """What each input channel shows, for instance CT, CT², CT^(1/3), PET."""
        return [
            modality.upper() + suffix
            for modality in self.modalities
            for suffix in ["", *(_NAMES[power] for power in self._powers(modality))]
        ]

    @property
    def channel_keys(self) -> list[str]:
        """The same in plain letters, as numbers are logged: ct, ct_square, ct_cube_root, pet."""
        return [
            "_".join([modality, *power])
            for modality in self.modalities
            for power in [(), *zip(self._powers(modality), strict=True)]
        ]

    def _powers(self, modality: str) -> tuple[Power, ...]:
        """What enhancement adds to a modality."""
        return {"ct": self.ct_powers, "pet": self.pet_powers}[modality] if self.cte else ()

    @property
    def unnormalised(self) -> InputSpec:
        """The stage's scaling alone: what a fingerprint is measured on."""
        return replace(self, normalise=(Normalise("none"),) * self.channels, pad_to=None)

    def transform(self) -> tio.Compose:
        """Subject with `ct`, `pet` (1, z, y, x) and perhaps `label` → subject with `image` (C, z, y, x)."""
        steps: list[tio.Transform] = []
        if self.ct_window is not None:
            steps.append(WindowCT(*self.ct_window))
        if "pet" in self.modalities and self.pet != "raw":
            steps.append(ScalePET(self.pet, self.pet_upper))
        if self.minmax_again:
            steps.append(MinMax(self.modalities))
        steps += [Enhance(name, powers) for name in self.modalities if (powers := self._powers(name))]
        if self.ct_window is not None:
            steps.append(RangeCT(*self.ct_range))
        steps.append(StackChannels(self.modalities))
        steps.append(NormaliseChannels(self.normalise))
        if self.pad_to is not None:
            # TorchIO pads symmetrically, so that the way back is a centre crop.
            steps.append(tio.CropOrPad(self.pad_to, padding_mode=0))
        return tio.Compose(steps, copy=False)
