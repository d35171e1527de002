"""How a network's input is made from HU and SUV: window, enhancement, scaling, normalisation, coordinates."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
import torchio as tio
from torch import Tensor

from hnseg.data.sampling import STUDY, Sampling

Scheme = Literal["zscore", "ct", "range", "sigmoid", "cohort", "rescale", "none"]
SCHEMES: tuple[str, ...] = get_args(Scheme)
# Constants of the training cohort that each scheme needs; the others take what they need from the image.
CONSTANTS = {
    "ct": ("lower", "upper", "mean", "std"),
    "range": ("lower", "upper"),
    "cohort": ("mean", "std"),
}
_EPS = 1e-8


@dataclass(frozen=True)
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
        mean: Of the cohort.
        std: Of the cohort.
    """

    scheme: Scheme
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"normalise={self.scheme}: choose one of {', '.join(SCHEMES)}")

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Normalise:
        """Reads what `to_dict` wrote."""
        return cls(**entries)

    def to_dict(self) -> dict[str, Any]:
        """The scheme and the constants that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def missing(self) -> tuple[str, ...]:
        """Constants that the scheme needs and that are not known yet."""
        needed = CONSTANTS.get(self.scheme, ())
        return tuple(f.name for f in fields(self) if f.name in needed and getattr(self, f.name) is None)

    def __call__(self, channel: Tensor) -> Tensor:
        """One channel (z, y, x) float → the same shape, normalised.

        Raises:
            ValueError: Constants of the cohort are needed and not known.
        """
        if self.missing:
            raise ValueError(f"normalise={self.scheme} needs {', '.join(self.missing)} of the training fold")
        return getattr(self, f"_{self.scheme}")(channel)

    def _none(self, x: Tensor) -> Tensor:
        return x

    def _zscore(self, x: Tensor) -> Tensor:
        return (x - x.mean()) / x.std(unbiased=False).clamp_min(_EPS)

    def _ct(self, x: Tensor) -> Tensor:
        lower, upper, mean, std = (self._constant(name) for name in CONSTANTS["ct"])
        return (x.clamp(lower, upper) - mean) / max(std, _EPS)

    def _range(self, x: Tensor) -> Tensor:
        lower, upper = (self._constant(name) for name in CONSTANTS["range"])
        return torch.sigmoid((x - lower) / max(upper - lower, _EPS) * 2 - 1)

    def _sigmoid(self, x: Tensor) -> Tensor:
        # A constant image has no spread: 0 / 0 in Auto3DSeg, 1/2 everywhere here.
        return torch.sigmoid((x - x.min()) / x.std().clamp_min(_EPS))

    def _cohort(self, x: Tensor) -> Tensor:
        mean, std = (self._constant(name) for name in CONSTANTS["cohort"])
        return (x - mean) / max(std, _EPS)

    def _rescale(self, x: Tensor) -> Tensor:
        x = x - x.min()
        return x / x.max().clamp_min(_EPS)

    def _constant(self, name: str) -> float:
        value: float = getattr(self, name)
        return value


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


AXES = ("x", "y", "z")
# Voxels along each axis from which a position is told: exact for affine transforms, so that few do.
_SAMPLES = 16


class Coordinates(tio.Image):
    """Positions in the ROI, (4, z, y, x): x, y and z along the patient's axes, and 1 wherever they are known.

    They are in units of half the ROI from its middle: -1 and 1 are its faces, whatever its voxels, and 1 is
    left, posterior, superior. An image of a type of its own: spatial transforms carry it along, TorchIO's to
    the nearest voxel, intensity transforms pass it by, and what is left of it `network_input` reads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "type": "coordinates"})


class AddCoordinates(tio.transforms.Transform):
    """Adds `coordinates` to a subject whose `image` is the whole ROI."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        image = subject["image"]
        z, y, x = (2 * (torch.arange(n) + 0.5) / n - 1 for n in image.spatial_shape)
        steps = torch.meshgrid(z, y, x, indexing="ij")
        known = torch.stack([*reversed(steps), torch.ones(image.spatial_shape)])
        subject.add_image(Coordinates(tensor=known, affine=image.affine), "coordinates")
        return subject


def network_input(subject: tio.Subject) -> Tensor:
    """The channels of a subject: its `image`, and x, y and z where it has `coordinates`.

    Returns:
        (C, z, y, x).
    """
    image: Tensor = subject["image"].data
    if "coordinates" not in subject:
        return image
    return torch.cat([image, extended(subject["coordinates"].data)])


def extended(coordinates: Tensor) -> Tensor:
    """Positions also where transforms have left none: beyond the ROI they go on beyond -1 and 1.

    All that augmentation and padding do is affine, so positions are an affine function of the voxel, which is
    found from those that are known; the voxels where nearest neighbours stood in are evened out.

    Args:
        coordinates: (4, z, y, x), of `Coordinates` after any affine transforms.

    Returns:
        x, y and z, (3, z, y, x); 0 where not one is known.
    """
    shape = coordinates.shape[1:]
    places = [torch.arange(0, n, max(1, n // _SAMPLES)) for n in shape]
    z, y, x = torch.meshgrid(*places, indexing="ij")
    few = coordinates[:, z, y, x].flatten(1).double()
    voxels = torch.cartesian_prod(*places).double()
    known = few[3] > 1 - 1e-3
    design = torch.cat([voxels, torch.ones(len(voxels), 1, dtype=torch.float64)], dim=1)[known]
    # The pseudo-inverse also serves patches that show a single slice of the ROI.
    slopes = torch.linalg.pinv(design) @ few[:3, known].T if known.any() else torch.zeros(4, 3).double()
    z, y, x = (torch.arange(n, dtype=torch.float64)[:, None] * slopes[axis] for axis, n in enumerate(shape))
    positions = z[:, None, None] + y[None, :, None] + x[None, None, :] + slopes[3]
    return positions.movedim(-1, 0).float().contiguous()


_NAMES = {"square": "²", "cube_root": "^(1/3)"}


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
    minmax_again: bool = False
    normalise: tuple[Normalise, ...] = ()
    pad_to: tuple[int, int, int] | None = None
    ct_powers: tuple[Power, ...] = ("square", "cube_root")
    pet_powers: tuple[Power, ...] = ()
    coordinates: bool = False

    def __post_init__(self) -> None:
        if not self.normalise:
            object.__setattr__(self, "normalise", (Normalise("none"),) * len(self._intensities))
        if len(self.normalise) != len(self._intensities):
            raise ValueError(
                f"normalise has {len(self.normalise)} entries for {len(self._intensities)} channels"
            )

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
        """What each input channel shows, for instance CT, CT², CT^(1/3), PET; x, y, z are coordinates."""
        shown = [name.upper() + (_NAMES[power] if power else "") for name, power in self._intensities]
        return [*shown, *(AXES if self.coordinates else ())]

    @property
    def channel_keys(self) -> list[str]:
        """The same in plain letters, as numbers are logged: ct, ct_square, ct_cube_root, pet."""
        plain = [f"{name}_{power}" if power else name for name, power in self._intensities]
        return [*plain, *(AXES if self.coordinates else ())]

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
        plain = (Normalise("none"),) * len(self._intensities)
        return replace(self, normalise=plain, pad_to=None, coordinates=False)

    def transform(self) -> tio.Compose:
        """Subject with the modalities (1, z, y, x) and perhaps `label` → subject with `image` (C, z, y, x),
        and `coordinates` where the input has them: `hnseg.data.coordinates.network_input` joins the two."""
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
        if self.coordinates:
            steps.append(AddCoordinates())
        if self.pad_to is not None:
            # TorchIO pads symmetrically, so that the way back is a centre crop.
            steps.append(tio.CropOrPad(self.pad_to, padding_mode=0))
        return tio.Compose(steps, copy=False)
