"""How a network's input is made from HU and SUV: window, enhancement, scaling, normalisation, coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torchio as tio
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass
from torch import Tensor

from hnseg.data.coordinates import AXES, coordinate_channels, roi_position
from hnseg.data.sampling import STUDY, Sampling

Scheme = Literal["zscore", "ct", "range", "sigmoid", "cohort", "rescale", "none"]
Power = Literal["square", "cube_root"]

# Constants of the training cohort that each scheme needs; the others take what they need from the image.
CONSTANTS = {
    "ct": ("lower", "upper", "mean", "std"),
    "range": ("lower", "upper"),
    "cohort": ("mean", "std"),
}
_EPS = 1e-8
_FORMULAS: dict[str, Callable[..., Tensor]] = {
    "none": lambda x: x,
    "zscore": lambda x: (x - x.mean()) / x.std(unbiased=False).clamp_min(_EPS),
    "ct": lambda x, lower, upper, mean, std: (x.clamp(lower, upper) - mean) / max(std, _EPS),
    "range": lambda x, lower, upper: torch.sigmoid((x - lower) / max(upper - lower, _EPS) * 2 - 1),
    # A constant image has no spread: 0 / 0 in Auto3DSeg, 1/2 everywhere here.
    "sigmoid": lambda x: torch.sigmoid((x - x.min()) / x.std().clamp_min(_EPS)),
    "cohort": lambda x, mean, std: (x - mean) / max(std, _EPS),
    "rescale": lambda x: (x - x.min()) / (x - x.min()).max().clamp_min(_EPS),
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Normalise:
    """Normalises one channel.

    Args:
        scheme: `zscore`: mean 0 and standard deviation 1 over the image (nnU-Net's ZScoreNormalization
            without mask). `ct`: clipped to [lower, upper], then (x - mean) / std (CTNormalization).
            `range`: lower → -1 and upper → 1, unclipped, then a sigmoid (Auto3DSeg's CT). `sigmoid`:
            sigmoid((x - min) / std) of the image (Auto3DSeg's PET). `cohort`: (x - mean) / std with
            constants, so that an absolute scale stays one. `rescale`: to [0, 1] by the image's extremes
            (RescaleTo01Normalization). `none`: as it is.
        lower: In the units of the channel, like the others: mostly the 0.5 % foreground percentile.
        upper: Mostly the 99.5 % foreground percentile.
        mean: Mean of the cohort.
        std: Standard deviation of the cohort.
    """

    scheme: Scheme
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: float | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Constants that the scheme needs and that are not known yet."""
        return tuple(name for name in CONSTANTS.get(self.scheme, ()) if getattr(self, name) is None)

    def __call__(self, channel: Tensor) -> Tensor:
        """One channel (z, y, x) float → the same shape, normalised.

        Raises:
            ValueError: Constants of the cohort are needed and not known.
        """
        if self.missing:
            raise ValueError(f"normalise={self.scheme} needs {', '.join(self.missing)} of the training fold")
        constants = {name: getattr(self, name) for name in CONSTANTS.get(self.scheme, ())}
        return _FORMULAS[self.scheme](channel, **constants)


def window(ct: Tensor, low: float, high: float) -> Tensor:
    """Clips CT to [low, high] HU and scales it to [0, 1] (paper section 2.3)."""
    return (ct.clamp(low, high) - low) / (high - low)


def minmax(x: Tensor) -> Tensor:
    """To [0, 1] by the image's extremes."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low).clamp_min(_EPS)


def scale_pet(suv: Tensor, rule: Literal["minmax", "suv"], upper: float) -> Tensor:
    """PET to [0, 1].

    Args:
        suv: PET, SUV.
        rule: `minmax` over the crop (paper), or `suv`, which divides by a fixed SUV and clips, so that
            the absolute scale is kept.
        upper: SUV that becomes 1 under `suv`.
    """
    # The B-spline undershoots beside hot spots; negative activity means nothing.
    suv = suv.clamp_min(0)
    return (suv / upper).clamp_max(1) if rule == "suv" else minmax(suv)


def enhance(x: Tensor, powers: tuple[Power, ...]) -> Tensor:
    """x (1, z, y, x) in [0, 1] → the channels [x, *powers], for instance [x, x², x^(1/3)].

    The powers are taken on [0, 1]: on [-1, 1] the square is not monotonic (two tissues would share a
    value) and the cube root of a negative is no real power.
    """
    exponents = {"square": 2, "cube_root": 1 / 3}
    # The B-spline leaves [0, 1] a little where a windowed image is sampled again.
    x = x.clamp(0, 1)
    return torch.cat([x, *(x ** exponents[power] for power in powers)])


def rescale(ct: Tensor, low: float, high: float) -> Tensor:
    """CT channels from [0, 1] to [low, high], channel by channel after the powers."""
    return ct * (high - low) + low


class StackChannels(tio.transforms.Transform):
    """Joins the modalities to one image `image` (C, z, y, x), each channel normalised by its scheme."""

    def __init__(self, modalities: tuple[str, ...], schemes: tuple[Normalise, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.modalities, self.schemes = modalities, schemes
        self.args_names = ["modalities", "schemes"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        stacked = torch.cat([subject[name].data for name in self.modalities])
        channels = [scheme(channel) for scheme, channel in zip(self.schemes, stacked, strict=True)]
        affine = subject[self.modalities[0]].affine
        for name in ("ct", "pet"):
            if name in subject:
                subject.remove_image(name)
        subject.add_image(tio.ScalarImage(tensor=torch.stack(channels), affine=affine), "image")
        return subject


def to_subject(images: Mapping[str, Tensor], label: Tensor | None = None) -> tio.Subject:
    """CT in HU, PET in SUV and perhaps labels of an ROI, all (z, y, x), by modality.

    The subject's affine says where its voxels lie in the ROI (`hnseg.data.coordinates`), padding included.
    """
    (shape,) = {tuple(image.shape) for image in images.values()}
    affine = np.vstack([roi_position(shape), [0, 0, 0, 1]])
    parts = {name: tio.ScalarImage(tensor=image[None], affine=affine) for name, image in images.items()}
    if label is not None:
        parts["label"] = tio.LabelMap(tensor=label[None], affine=affine)
    return tio.Subject(parts)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class InputSpec:
    """How a network's input is made from a study's CT in HU and PET in SUV.

    Args:
        modalities: ("ct",) for the head stage, ("ct", "pet") after it.
        sampling: What the volumes are cut from, and what lies outside it.
        ct_window: HU that become 0 and 1; None leaves CT as it is: already in [0, 1] where it comes from
            the head crop, HU where a foreign network wants HU.
        ct_range: What 0 and 1 become after the powers; unused without a window on studies.
        cte: Enhancement: powers of x beside x, those of `ct_powers` and `pet_powers`.
        pet: `minmax` over the crop, `suv` against a fixed upper bound, or `raw`.
        pet_upper: That bound, SUV.
        roi_minmax: Scale both modalities by their extremes in the ROI, before the powers (the authors' second
            scaling).
        normalise: On top, one for each channel of intensities in the order of the channels.
        pad_to: Shape (z, y, x) to which the ROI is padded after normalisation, with zeros.
        ct_powers: What enhancement adds to CT; the paper's are x² and x^(1/3).
        pet_powers: What it adds to PET, which must be in [0, 1] by then.
        coordinates: Three channels more: where each voxel lies in the ROI along x, y and z
            (`hnseg.data.coordinates`).
    """

    modalities: tuple[str, ...] = ("ct", "pet")
    sampling: Sampling = STUDY
    ct_window: tuple[float, float] | None = (-110.0, 190.0)
    ct_range: tuple[float, float] = (-1.0, 1.0)
    cte: bool = False
    pet: Literal["minmax", "suv", "raw"] = "minmax"
    pet_upper: float = 20.0
    roi_minmax: bool = False
    normalise: tuple[Normalise, ...] = ()
    pad_to: tuple[int, int, int] | None = None
    ct_powers: tuple[Power, ...] = ("square", "cube_root")
    pet_powers: tuple[Power, ...] = ()
    coordinates: bool = False

    def __post_init__(self) -> None:
        channels = len(self._intensities)
        if not self.normalise:
            object.__setattr__(self, "normalise", (Normalise("none"),) * channels)
        if len(self.normalise) != channels:
            raise ValueError(f"normalise has {len(self.normalise)} entries for {channels} channels")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for the checkpoint and the bundle; `InputSpec(**fields)` reads them."""
        fields: dict[str, Any] = TypeAdapter(InputSpec).dump_python(self, mode="json")
        schemes = [{k: v for k, v in scheme.items() if v is not None} for scheme in fields["normalise"]]
        return fields | {"normalise": schemes}

    @property
    def channels(self) -> int:
        """Number of input channels of the network."""
        return len(self.channel_names)

    @property
    def channel_names(self) -> list[str]:
        """What each input channel shows, for instance CT, CT², CT^(1/3), PET; x, y, z are coordinates."""
        signs = {None: "", "square": "²", "cube_root": "^(1/3)"}
        names = [name.upper() + signs[power] for name, power in self._intensities]
        return [*names, *(AXES if self.coordinates else ())]

    @property
    def channel_keys(self) -> list[str]:
        """The same in plain letters, as numbers are logged: ct, ct_square, ct_cube_root, pet."""
        keys = [f"{name}_{power}" if power else name for name, power in self._intensities]
        return [*keys, *(AXES if self.coordinates else ())]

    @property
    def _intensities(self) -> list[tuple[str, Power | None]]:
        """Modality and power of each channel that shows one; None is the modality itself."""
        return [(name, power) for name in self.modalities for power in (None, *self._powers(name))]

    def _powers(self, modality: str) -> tuple[Power, ...]:
        """What enhancement adds to a modality."""
        return {"ct": self.ct_powers, "pet": self.pet_powers}[modality] if self.cte else ()

    @property
    def unnormalised(self) -> InputSpec:
        """The stage's scaling alone: what a fingerprint is measured on."""
        return replace(self, normalise=(), pad_to=None, coordinates=False)

    def transform(self) -> tio.Compose:
        """Subject with the modalities (1, z, y, x) and perhaps `label` → subject with `image` (C, z, y, x).

        It is padded, and has no coordinates yet. The subject given is changed; its tensors are not.
        """
        steps: list[tio.Transform] = []

        def scale(modality: str, function: Callable[..., Tensor], **settings: Any) -> None:
            steps.append(tio.Lambda(partial(function, **settings), include=[modality]))

        if self.ct_window is not None:
            scale("ct", window, low=self.ct_window[0], high=self.ct_window[1])
        if "pet" in self.modalities and self.pet != "raw":
            scale("pet", scale_pet, rule=self.pet, upper=self.pet_upper)
        for name in self.modalities:
            if self.roi_minmax:
                scale(name, minmax)
            if powers := self._powers(name):
                scale(name, enhance, powers=powers)
        if self.ct_window is not None:
            scale("ct", rescale, low=self.ct_range[0], high=self.ct_range[1])
        steps.append(StackChannels(self.modalities, self.normalise))
        if self.pad_to is not None:
            # TorchIO pads symmetrically, so that a centre crop undoes it.
            steps.append(tio.CropOrPad(self.pad_to, padding_mode=0))
        for step in steps:
            step.copy = False  # TorchIO would copy the subject before each
        return tio.Compose(steps, copy=False)

    def network_input(self, subject: tio.Subject) -> Tensor:
        """The network's input (C, z, y, x): what `transform` made of a whole ROI, with coordinates."""
        image = subject["image"]
        data: Tensor = image.data
        if not self.coordinates:
            return data
        return torch.cat([data, coordinate_channels(image.affine[:3], data.shape[1:], data.device)])
