"""From HU and SUV to the network's input channels, as TorchIO transforms.

The same chain runs in training and inference. It is described by an `InputSpec`, which travels in
the checkpoint, so that a trained network knows how its input was made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torchio as tio
from torch import Tensor


class WindowCT(tio.transforms.Transform):
    """Clips CT to [low, high] HU and scales it to [-1, 1] (paper section 2.3)."""

    def __init__(self, low: float, high: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high
        self.args_names = ["low", "high"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        ct = subject["ct"]
        ct.set_data(window(ct.data.float(), self.low, self.high))
        return subject


class EnhanceCT(tio.transforms.Transform):
    """Windowed CT x in [-1, 1] → three channels [x, x², x^(1/3)], each again in [-1, 1].

    The powers are taken on [0, 1] and scaled to [-1, 1] afterwards, channel by channel: on [-1, 1]
    the square is not monotonic (two tissues would share a value).
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        ct = subject["ct"]
        unit = (ct.data + 1) / 2
        ct.set_data(torch.cat([unit, unit**2, unit ** (1 / 3)]) * 2 - 1)
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
        if self.rule == "suv":
            pet.set_data((suv / self.upper).clamp_max(1))
        else:
            low, high = suv.min(), suv.max()
            pet.set_data((suv - low) / (high - low).clamp_min(1e-8))
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


class ZScore(tio.transforms.Transform):
    """Each channel of `image` to mean 0 and standard deviation 1 over the volume (nnU-Net's, no mask)."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        image = subject["image"]
        data = image.data
        mean = data.mean(dim=(1, 2, 3), keepdim=True)
        std = data.std(dim=(1, 2, 3), keepdim=True, unbiased=False)
        image.set_data((data - mean) / std.clamp_min(1e-8))
        return subject


def window(hu: Tensor, low: float, high: float) -> Tensor:
    """Clips to [low, high] and scales to [-1, 1]."""
    return (hu.clamp(low, high) - low) / (high - low) * 2 - 1


@dataclass(frozen=True)
class InputSpec:
    """How a network's input is made from CT in HU and PET in SUV on a stage grid.

    Args:
        modalities: ("ct",) for the head stage, ("ct", "pet") after it.
        ct_window: HU that become -1 and 1.
        cte: CT enhancement: [x, x², x^(1/3)] instead of x.
        pet: `minmax` over the crop, or `suv` against a fixed upper bound.
        pet_upper: That bound, SUV.
        normalise: `zscore` per image and channel on top, or `none`.
        pad_to: Shape (z, y, x) to which the ROI is padded after normalisation, with zeros.
    """

    modalities: tuple[str, ...] = ("ct", "pet")
    ct_window: tuple[float, float] = (-110.0, 190.0)
    cte: bool = False
    pet: Literal["minmax", "suv"] = "minmax"
    pet_upper: float = 20.0
    normalise: Literal["zscore", "none"] = "zscore"
    pad_to: tuple[int, int, int] | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> InputSpec:
        """Reads what `to_dict` wrote."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for the checkpoint and the bundle."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @staticmethod
    def recipe(fields: dict[str, Any]) -> dict[str, Any]:
        """The part of a recipe that concerns the input, as arguments of `InputSpec`."""
        chosen = {key: fields[key] for key in ("ct_window", "pet", "pet_upper", "normalise")}
        return {**chosen, "ct_window": tuple(chosen["ct_window"])}

    @property
    def channels(self) -> int:
        """Number of input channels of the network."""
        return (3 if self.cte else 1) + ("pet" in self.modalities)

    def transform(self) -> tio.Compose:
        """Subject with `ct`, `pet` (1, z, y, x) and perhaps `label` → subject with `image` (C, z, y, x)."""
        steps: list[tio.Transform] = [WindowCT(*self.ct_window)]
        if self.cte:
            steps.append(EnhanceCT())
        if "pet" in self.modalities:
            steps.append(ScalePET(self.pet, self.pet_upper))
        steps.append(StackChannels(self.modalities))
        if self.normalise == "zscore":
            steps.append(ZScore())
        if self.pad_to is not None:
            # TorchIO pads symmetrically, so that the way back is a centre crop.
            steps.append(tio.CropOrPad(self.pad_to, padding_mode=0))
        return tio.Compose(steps, copy=False)
