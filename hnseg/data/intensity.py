"""A network's input from HU and SUV: window, enhancement, scaling, normalisation, coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torchio as tio
from torch import Tensor

from hnseg.card import InputSpec, Normalise, Power
from hnseg.data.patch import coordinate_channels, roi_position
from hnseg.data.resample import minmax, window

_EPS = 1e-8
_FORMULAS: dict[str, Callable[..., Tensor]] = {
    "none": lambda x: x,
    "zscore": lambda x: (x - x.mean()) / x.std(unbiased=False).clamp_min(_EPS),
    "ct": lambda x, lower, upper, mean, std: (x.clamp(lower, upper) - mean) / max(std, _EPS),
    "range": lambda x, lower, upper: torch.sigmoid((x - lower) / max(upper - lower, _EPS) * 2 - 1),
    # A constant image has no spread: 0 / 0 in Auto3DSeg, 1/2 everywhere here.
    "sigmoid": lambda x: torch.sigmoid((x - x.min()) / x.std().clamp_min(_EPS)),
    "cohort": lambda x, mean, std: (x - mean) / max(std, _EPS),
    "rescale": minmax,
}


def normalise(channel: Tensor, how: Normalise) -> Tensor:
    """One channel (z, y, x) float → the same shape, normalised.

    Raises:
        ValueError: Constants of the cohort are needed and not known.
    """
    if how.missing:
        raise ValueError(f"normalise={how.scheme} needs {', '.join(how.missing)} of the training fold")
    return _FORMULAS[how.scheme](channel, **how.constants)


def scale_pet(suv: Tensor, rule: Literal["minmax", "suv"], upper: float) -> Tensor:
    """PET in SUV to [0, 1]: by `minmax` over the crop (paper), or by `suv`, where `upper` SUV become 1."""
    # The B-spline undershoots beside hot spots; negative activity means nothing.
    suv = suv.clamp_min(0)
    return (suv / upper).clamp_max(1) if rule == "suv" else minmax(suv)


def enhance(x: Tensor, powers: tuple[Power, ...]) -> Tensor:
    """x (1, z, y, x) in [0, 1] → the channels [x, *powers], for instance [x, x², x^(1/3)].

    On [-1, 1] the square would not be monotonic, and the cube root of a negative is no real power.
    """
    exponents = {"square": 2, "cube_root": 1 / 3}
    # The B-spline leaves [0, 1] a little where a windowed image is sampled again.
    x = x.clamp(0, 1)
    return torch.cat([x, *(x ** exponents[power] for power in powers)])


def stretch(x: Tensor, low: float, high: float) -> Tensor:
    """From [0, 1] to [low, high]."""
    return x * (high - low) + low


class StackChannels(tio.transforms.Transform):
    """Joins the modalities to one image `image` (C, z, y, x), each channel normalised by its scheme."""

    def __init__(self, modalities: tuple[str, ...], schemes: tuple[Normalise, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.modalities, self.schemes = modalities, schemes
        self.args_names = ["modalities", "schemes"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        stacked = torch.cat([subject[name].data for name in self.modalities])
        channels = [normalise(one, how) for one, how in zip(stacked, self.schemes, strict=True)]
        affine = subject[self.modalities[0]].affine
        for name in ("ct", "pet"):
            if name in subject:
                subject.remove_image(name)
        subject.add_image(tio.ScalarImage(tensor=torch.stack(channels), affine=affine), "image")
        return subject


def to_subject(images: Mapping[str, Tensor], label: Tensor | None = None) -> tio.Subject:
    """CT in HU, PET in SUV and perhaps labels of an ROI, all (z, y, x), by modality.

    The subject's affine says where its voxels lie in the ROI (`hnseg.data.patch`), padding included.
    """
    (shape,) = {tuple(image.shape) for image in images.values()}
    affine = np.vstack([roi_position(shape), [0, 0, 0, 1]])
    parts = {name: tio.ScalarImage(tensor=image[None], affine=affine) for name, image in images.items()}
    if label is not None:
        parts["label"] = tio.LabelMap(tensor=label[None], affine=affine)
    return tio.Subject(parts)


def input_transform(spec: InputSpec) -> tio.Compose:
    """Subject with the modalities (1, z, y, x) and perhaps `label` → with padded `image` (C, z, y, x).

    The subject is changed; its tensors are not.
    """
    steps: list[tio.Transform] = []

    def scale(modality: str, function: Callable[..., Tensor], **settings: Any) -> None:
        steps.append(tio.Lambda(partial(function, **settings), include=[modality]))

    if spec.ct_window is not None:
        scale("ct", window, low=spec.ct_window[0], high=spec.ct_window[1])
    if "pet" in spec.modalities and spec.pet != "raw":
        scale("pet", scale_pet, rule=spec.pet, upper=spec.pet_upper)
    for name in spec.modalities:
        if spec.roi_minmax:
            scale(name, minmax)
        if powers := spec.powers(name):
            scale(name, enhance, powers=powers)
    if spec.ct_window is not None:
        scale("ct", stretch, low=spec.ct_range[0], high=spec.ct_range[1])
    schemes = spec.normalise or (Normalise("none"),) * len(spec.intensities)
    steps.append(StackChannels(spec.modalities, schemes))
    if spec.pad_to is not None:
        # TorchIO pads symmetrically, so that a centre crop undoes it.
        steps.append(tio.CropOrPad(spec.pad_to, padding_mode=0))
    for step in steps:
        step.copy = False  # TorchIO would copy the subject before each
    return tio.Compose(steps, copy=False)


def network_input(spec: InputSpec, subject: tio.Subject) -> Tensor:
    """The network's input (C, z, y, x): what `input_transform` made of a whole ROI, with coordinates."""
    image = subject["image"]
    data: Tensor = image.data
    if not spec.coordinates:
        return data
    return torch.cat([data, coordinate_channels(image.affine[:3], data.shape[1:], data.device)])
