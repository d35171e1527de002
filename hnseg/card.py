"""What a checkpoint says of its network: `Card`, with its stage, input chain and decision, and their types.

pydantic dataclasses: `Stage(**content)` reads one and refuses what it may not be, `plain` writes one as
lists, numbers and names. Sizes and spacings are (x, y, z), shapes and patches (z, y, x).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, inf
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from torch import Tensor

# Scalars are never converted: "3" is no 3, and "no" is no false. Lists become tuples.
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, ge=0, lt=inf)]
Positive = Annotated[float, Field(strict=True, gt=0, lt=inf)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]
# A name or folder may be called 2025, which Hydra reads as a number.
Written = BeforeValidator(lambda value: str(value) if type(value) is int else value)
Name = Annotated[str, Written, Field(strict=True, min_length=1)]
# Of a member, whose folder in a bundle it names: no path.
FolderName = Annotated[Name, Field(max_length=200, pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$")]

Shape = tuple[Count, Count, Count]
Bounds = tuple[Number, Number]  # rising
LesionClass = Literal["GTVp", "GTVn"]
StageName = Literal["localiser", "coarse", "fine"]
Power = Literal["square", "cube_root"]
Scheme = Literal["zscore", "ct", "range", "sigmoid", "cohort", "rescale", "none"]
PetRule = Literal["minmax", "suv", "raw"]
Source = Literal["study", "head_crop"]
Outside = Literal["air", "minus_one"]

Tiling = Literal["nnunet", "monai"]
Axis = Annotated[int, Field(strict=True, ge=0, le=2)]  # of (z, y, x)

_VALUES = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_VALUES)
class Stage:
    """One stage of the cascade: a grid, the rule that places it, and its classes (paper 2.3).

    Args:
        name: localiser, coarse or fine.
        size: Voxels of the grid, (x, y, z).
        spacing: Voxel size in mm, (x, y, z).
        placement: `top_of_scan` hangs the grid from the top of the scan, `below_head` from a head mask,
            `lesions` centres it on the mean voxel of all lesions (ground truth in training, the coarse
            prediction at inference), `scan` on the middle of the scan.
        classes: Foreground classes in the order of their labels 1, 2, ...
        antialias: Smooth images before sampling them on a coarser grid.
        top: For `below_head`, height of the ROI's top face as a fraction of the head's box.
        lateral: For `top_of_scan`, centred on the `body` in x and y, or from the image's `corner`.
    """

    name: StageName
    size: Shape
    spacing: tuple[Positive, Positive, Positive]
    placement: Literal["top_of_scan", "below_head", "lesions", "scan"]
    classes: Annotated[tuple[Name, ...], Field(min_length=1)] = ("GTVp", "GTVn")
    antialias: StrictBool = False
    top: Number = 0.7
    lateral: Literal["body", "corner"] = "body"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the stage's arrays, (z, y, x)."""
        return self.size[2], self.size[1], self.size[0]

    def voxels(self, mm: float) -> tuple[int, int, int]:
        """A length in mm as whole voxels along (x, y, z), rounded up."""
        x, y, z = (ceil(mm / side) for side in self.spacing)
        return x, y, z

    def widened(self, mm: float) -> Stage:
        """The stage with a grid larger by a margin in mm on every side, in whole voxels."""
        x, y, z = (n + 2 * m for n, m in zip(self.size, self.voxels(mm), strict=True))
        return replace(self, size=(x, y, z))


@dataclass(frozen=True, config=_VALUES)
class Sampling:
    """How CT and PET come onto a stage's grid.

    Args:
        source: `study` samples the original study once (HU and SUV). `head_crop` samples the authors' head
            crop, which was sampled and windowed before: CT in [0, 1] of `ct_window`, PET by min-max over the
            crop and then a window of level 2.5 and width 5, B-spline twice.
        outside: Value outside the source: `air` is air and no activity; `minus_one` is the authors', -1 in
            both modalities where the study is sampled, and CT -1, PET 0 where the head crop is.
        ct_window: HU that become 0 and 1 in the head crop.
        head_size: Voxels of the head crop, (x, y, z).
        head_spacing: mm, (x, y, z).
    """

    source: Source = "study"
    outside: Outside = "air"
    ct_window: Bounds = (-105.0, 195.0)
    head_size: Shape = (256, 256, 128)
    head_spacing: tuple[Positive, Positive, Positive] = (2.0, 2.0, 3.0)


STUDY = Sampling()  # the paper's, and the default


@dataclass(frozen=True, config=_VALUES)
class Normalise:
    """How one channel is normalised, on top of the stage's own scaling.

    Args:
        scheme: `zscore`: mean 0 and standard deviation 1 over the image (nnU-Net's ZScoreNormalization
            without mask). `ct`: clipped to [lower, upper], then (x - mean) / std (CTNormalization). `range`:
            lower → -1 and upper → 1, unclipped, then a sigmoid (Auto3DSeg's CT). `sigmoid`: sigmoid((x - min)
            / std) of the image (Auto3DSeg's PET). `cohort`: (x - mean) / std with constants, so that an
            absolute scale stays one. `rescale`: to [0, 1] by the image's extremes (RescaleTo01Normalization).
            `none`: as it is.
        lower: In the units of the channel, like the others: mostly the 0.5 % foreground percentile.
        upper: Mostly the 99.5 % foreground percentile.
        mean: Of the cohort.
        std: Of the cohort.
    """

    scheme: Scheme
    lower: Number | None = None
    upper: Number | None = None
    mean: Number | None = None
    std: Number | None = None

    @property
    def constants(self) -> dict[str, float | None]:
        """Constants of the training cohort that the scheme needs; mostly none."""
        needed = {
            "ct": ("lower", "upper", "mean", "std"),
            "range": ("lower", "upper"),
            "cohort": ("mean", "std"),
        }
        return {name: getattr(self, name) for name in needed.get(self.scheme, ())}

    @property
    def missing(self) -> tuple[str, ...]:
        """Those that are not known yet."""
        return tuple(name for name, value in self.constants.items() if value is None)


@dataclass(frozen=True, config=_VALUES)
class InputSpec:
    """How a network's input is made from a study's CT in HU and PET in SUV.

    Args:
        modalities: ("ct",) for the localiser, ("ct", "pet") after it.
        sampling: What the volumes are cut from, and what lies outside it.
        ct_window: HU that become 0 and 1; None leaves CT as it is: already in [0, 1] where it comes from the
            head crop, HU where a foreign network wants HU.
        ct_range: What 0 and 1 become after the powers; unused without a window on studies.
        cte: Enhancement: powers of x beside x, those of `ct_powers` and `pet_powers`.
        pet: `minmax` over the crop, `suv` against a fixed upper bound, or `raw`.
        pet_upper: That bound, SUV.
        roi_minmax: Scale both modalities by their extremes in the ROI, before the powers.
        normalise: On top, one for each channel of intensities; () normalises none.
        pad_to: Shape (z, y, x) to which the ROI is padded after normalisation, with zeros.
        ct_powers: What enhancement adds to CT; the paper's are x² and x^(1/3).
        pet_powers: What it adds to PET, which must be in [0, 1] by then.
        coordinates: Three channels more: where each voxel lies in the ROI along x, y and z.
    """

    modalities: tuple[Literal["ct", "pet"], ...] = ("ct", "pet")
    sampling: Sampling = STUDY
    ct_window: Bounds | None = (-110.0, 190.0)
    ct_range: Bounds = (-1.0, 1.0)
    cte: StrictBool = False
    pet: PetRule = "minmax"
    pet_upper: Positive = 20.0
    roi_minmax: StrictBool = False
    normalise: tuple[Normalise, ...] = ()
    pad_to: Shape | None = None
    ct_powers: tuple[Power, ...] = ("square", "cube_root")
    pet_powers: tuple[Power, ...] = ()
    coordinates: StrictBool = False

    @model_validator(mode="after")
    def _one_scheme_a_channel(self) -> Self:
        if len(self.normalise) not in (0, len(self.intensities)):
            raise ValueError(
                f"normalise has {len(self.normalise)} entries for {len(self.intensities)} channels"
            )
        return self

    def powers(self, modality: str) -> tuple[Power, ...]:
        """What enhancement adds to a modality."""
        return {"ct": self.ct_powers, "pet": self.pet_powers}[modality] if self.cte else ()

    @property
    def intensities(self) -> list[tuple[str, Power | None]]:
        """Modality and power of each channel that shows one; None is the modality itself."""
        return [(name, power) for name in self.modalities for power in (None, *self.powers(name))]

    @property
    def channels(self) -> int:
        """Number of input channels of the network."""
        return len(self.channel_names)

    @property
    def channel_names(self) -> list[str]:
        """What each input channel shows, for instance CT, CT², CT^(1/3), PET; x, y, z are coordinates."""
        sign = {None: "", "square": "²", "cube_root": "^(1/3)"}
        return [name.upper() + sign[power] for name, power in self.intensities] + self._axes

    @property
    def channel_keys(self) -> list[str]:
        """The same in plain letters, as numbers are logged: ct, ct_square, ct_cube_root, pet."""
        return [f"{name}_{power}" if power else name for name, power in self.intensities] + self._axes

    @property
    def _axes(self) -> list[str]:
        return ["x", "y", "z"] if self.coordinates else []

    @property
    def unnormalised(self) -> InputSpec:
        """The stage's scaling alone: what a fingerprint is measured on."""
        return replace(self, normalise=(), pad_to=None, coordinates=False)


@dataclass(frozen=True, config=_VALUES)
class Decision:
    """The rules from probabilities to a mask; a bundle carries them as `decision`.

    Args:
        fusion: `flat` is the mean of the members' probabilities; `authors` is the release's: the mean of
            softmax(mean logits of nnU-Net's networks) and the mean softmax of the others.
        weights: Of a model's members under `flat`, 1 where not named; 0 leaves them out.
        rule: `half` wants a probability of at least 0.5, `argmax` more than the background's.
        thresholds: By class; read under `argmax` alone.
        resample_output: What is brought to the CT's grid: `probabilities`, linearly, to be decided there, or
            `labels` decided on the stage's grid, by nearest neighbour.
        min_component_ml: Smallest component that stays, ml; one number or by class. 0 keeps all.
        node_suv_peak: GTVn components with a lower SUVpeak are dropped; None or 0 drops none.
        mirror: Average over mirrorings in the last stage.
        roi_cover: A `single` cube, or `multiple` ones where the coarse lesions need them.
        fallback: Where a stage finds nothing, `chain` looks somewhere sensible and `fail` ends the case.
    """

    fusion: Literal["flat", "authors"] = "flat"
    weights: dict[str, Amount] = Field(default_factory=dict)
    rule: Literal["half", "argmax"] = "half"
    thresholds: dict[LesionClass, Probability] = Field(default_factory=dict)
    resample_output: Literal["probabilities", "labels"] = "probabilities"
    min_component_ml: Amount | dict[LesionClass, Amount] = 0.0
    node_suv_peak: Amount | None = None
    mirror: StrictBool = False
    roi_cover: Literal["single", "multiple"] = "single"
    fallback: Literal["chain", "fail"] = "chain"

    @property
    def placing(self) -> Decision:
        """The rules for what only places the next stage's ROI: the likeliest class, as it comes."""
        return Decision(self.fusion, self.weights, rule="argmax", fallback=self.fallback)

    def floors(self, classes: tuple[str, ...] | list[str]) -> list[float]:
        """The smallest component that stays, ml, class by class."""
        floor: Any = self.min_component_ml
        return [floor.get(name, 0.0) if isinstance(floor, dict) else floor for name in classes]


@dataclass(frozen=True, config=_VALUES)
class Axes:
    """How the axes of an imported network relate to (z, y, x).

    The volume is turned before it is cut into windows, since neither MONAI's tiles nor the padding of an
    odd number of voxels are the same from both ends.

    Args:
        order: The network's axes, each as an axis of (z, y, x): (2, 1, 0) is a network that takes (x, y, z).
        flip: Those of the network's axes that run in the opposite direction.
    """

    order: tuple[Axis, Axis, Axis] = (0, 1, 2)
    flip: tuple[Axis, ...] = ()

    @property
    def inverse(self) -> tuple[int, int, int]:
        """The axes (z, y, x), each as an axis of the network."""
        z, y, x = (self.order.index(axis) for axis in range(3))
        return z, y, x

    def to_network(self, image: Tensor) -> Tensor:
        """(B, C, z, y, x) → (B, C, *the network's axes)."""
        return image.permute(0, 1, *(2 + axis for axis in self.order)).flip([2 + axis for axis in self.flip])

    def from_network(self, logits: Tensor) -> Tensor:
        """(B, K, *the network's axes) → (B, K, z, y, x)."""
        return logits.flip([2 + axis for axis in self.flip]).permute(0, 1, *(2 + n for n in self.inverse))

    def shape_to_network(self, shape: Shape) -> Shape:
        """(z, y, x) → the network's axes."""
        a, b, c = (shape[axis] for axis in self.order)
        return a, b, c

    def shape_from_network(self, shape: Shape) -> Shape:
        """The network's axes → (z, y, x)."""
        z, y, x = (shape[axis] for axis in self.inverse)
        return z, y, x


@dataclass(frozen=True, config=_VALUES)
class Window:
    """How a volume larger than the patch is shown."""

    tiling: Tiling  # whose steps and weights
    overlap: Fraction  # share of a window that the next one repeats


@dataclass(frozen=True, config=_VALUES)
class Card:
    """What a checkpoint or bundle says of a network: all that it takes to run it, and where it comes from.

    Args:
        name: Of the member, unique in its bundle.
        model: The name of conf/model.
        fold: That it was not trained on, or `all`.
        stage: The stage, with its grid.
        input: The input chain, with the constants of the training fold.
        network: `_target_` and the arguments of its class, `in_channels` and `out_channels` among them.
        patch: (z, y, x).
        trained_on: Case ids; None where they are unknown.
        trained_on_ct: `digest_voxels` of the CT of each: the same patient under another name.
        window: How a volume larger than the patch is shown.
        recipe: Its name.
        decision: The recipe's rules.
        axes: The network's own.
        mirror_axes: Axes of (z, y, x) along which it may be mirrored.
        split: Digest of the folds.
        fingerprint: Digest of the constants measured on the training fold.
        data: Digest of images and labels.
        imported: Where an imported network comes from.
        scores: Of its validation.
    """

    name: FolderName
    model: Name
    fold: int | str
    stage: Stage
    input: InputSpec
    network: dict[str, Any]
    patch: Shape
    trained_on: tuple[str, ...] | None = None
    trained_on_ct: tuple[str, ...] = ()
    window: Window = Window("nnunet", 0.5)
    recipe: str = ""
    decision: Decision = Decision()
    axes: Axes = Axes()
    mirror_axes: tuple[Axis, ...] = (0, 1, 2)
    split: str | None = None
    fingerprint: str | None = None
    data: str | None = None
    imported: dict[str, Any] | None = None
    scores: dict[str, float] = Field(default_factory=dict)


def plain(value: Any) -> Any:
    """Settings as lists, numbers and names, for JSON, YAML and a checkpoint's card."""
    return to_jsonable_python(value, by_alias=True)
