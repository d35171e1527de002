"""An Auto3DSeg SegResNet folder → bundle members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hnseg.card import Axes, Bounds, InputSpec, Normalise, Shape, Window
from hnseg.data.splits import read_split_file
from hnseg.errors import HnsegError
from hnseg.importing.members import (
    Spacing,
    add_members,
    check_channels,
    check_classes,
    check_spacing,
    compose,
    make_member,
    parse,
)
from hnseg.models.bundle import Trained
from hnseg.models.checkpoint import read_foreign_checkpoint

CHECKPOINT = Path("model/model.pt")
# How the segmenter shows a volume: written in its code, no key of the configuration.
WINDOW = Window(tiling="monai", overlap=0.625)
# The modes that hnseg has too; `meanstd` and the like leave voxels of 0 out.
_MODES: dict[str, Any] = {"range": "range", "ct": "range", "pet": "sigmoid", "none": "none"}
# The template leaves a volume as it is where its spacing differs by at most this share of the one it wants.
_NEAR = 0.25


def _layer(value: Any) -> str | list[Any]:
    """A layer of MONAI's factories: its name, or name and arguments if any make a difference."""
    name, arguments = (value, {}) if isinstance(value, str) else (value[0], dict(value[1]))
    arguments.pop("inplace", None)
    name = name.upper().removesuffix("_NVFUSER")  # Apex's is the same norm, only faster
    return [name, arguments] if arguments else name


Layer = Annotated[str | tuple[str, dict[str, Any]], AfterValidator(_layer)]


class Network(BaseModel):
    """Arguments of MONAI's SegResNetDS with its defaults; those of one value are built into hnseg's."""

    model_config = ConfigDict(extra="forbid")
    target: str = Field(alias="_target_", pattern=r"(^|\.)SegResNetDS$")
    in_channels: int
    out_channels: int
    init_filters: int = 32
    blocks_down: list[int] = [1, 2, 2, 4]
    dsdepth: int = 1
    norm: Layer = "BATCH"
    act: Layer = "RELU"
    resolution: Spacing | None = None
    spatial_dims: Literal[3] = 3
    blocks_up: None = None
    preprocess: None = None
    upsample_mode: Literal["deconv"] = "deconv"


class HyperParameters(BaseModel):
    """The configuration of one algorithm, with the template's defaults; hnseg has its usual steps alone."""

    network: Network
    fold: int = 0
    modality: str = "mri"
    normalize_mode: str = ""
    extra_modalities: dict[str, str] = {}
    intensity_bounds: Bounds = (-250.0, 250.0)
    roi_size: Shape = (128, 128, 128)
    orientation_ras: bool = False
    resample: bool = False
    resample_resolution: Spacing = (1.0, 1.0, 1.0)
    spacing_median: Spacing | None = None
    anisotropic_scales: bool = False
    class_names: list[str] = []
    augment_mode: str = ""
    augment_flips: set[Literal[0, 1, 2]] = {0, 1, 2}
    data_list_file_path: Path = Path()
    crop_foreground: bool = True
    sigmoid: Literal[False] = False  # hnseg has a softmax over background and classes
    custom_data_transforms: Any = Field(None, max_length=0)
    sliding_inferrer: None = None
    cache_image_int16: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Replaces references `@KEY` by the values of their keys; None is the template's default."""

        def value_of(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: value_of(inner) for key, inner in value.items()}
            is_reference = isinstance(value, str) and value.startswith("@")
            return value_of(content.get(value[1:])) if is_reference else value

        return {key: value_of(value) for key, value in content.items() if value is not None}

    @property
    def axes(self) -> Axes:
        """RAS+; or else the file's own, which are (x, y, z) in LPS for files on hnseg's grids."""
        return Axes((2, 1, 0), (0, 1) if self.orientation_ras else ())


class Stored(BaseModel):
    """A checkpoint."""

    state_dict: dict[str, Any]
    config: dict[str, Any]
    epoch: int = 0
    best_metric: float = 0


def import_auto3dseg(folder: Path, overrides: Sequence[str], out: Path) -> list[str]:
    """Makes bundle members of one algorithm folder, or of all `segresnet_*` of a work directory.

    Args:
        overrides: As for hnseg train: the stage, and the recipe whose scaling made the network's images.
        out: The bundle; it is extended where it exists.

    Returns:
        The members' names.

    Raises:
        HnsegError: No SegResNet there, or one that hnseg cannot run as Auto3DSeg does.
    """
    paths = [folder / CHECKPOINT] if (folder / CHECKPOINT).exists() else []
    paths = paths or sorted(folder.glob(f"segresnet_*/{CHECKPOINT}"))
    if not paths:
        raise HnsegError(
            f"{folder}: neither {CHECKPOINT} nor segresnet_*/{CHECKPOINT} in it; name an Auto3DSeg work "
            "directory or one of its segresnet folders"
        )
    return add_members(out, (_member(path, overrides) for path in paths))


def _member(path: Path, overrides: Sequence[str]) -> Trained:
    stored = parse(Stored, read_foreign_checkpoint(path), path)
    parameters = parse(HyperParameters, stored.config, path)
    job, stage, spec = compose("segresnet", "SegResNetDS", overrides)
    classes = [name for name in parameters.class_names if name.lower() != "background"]
    check_classes(classes or stage.classes, stage, path)
    # Without resampling, the network knows the spacing of its training data.
    spacing = parameters.resample_resolution if parameters.resample else parameters.spacing_median
    check_spacing(spacing or stage.spacing, stage.spacing, _NEAR, path)
    normalise = _normalisation(parameters, spec, path)
    axes, network = parameters.axes, parameters.network
    resolution = parameters.resample_resolution if parameters.anisotropic_scales else network.resolution
    settings = {
        "init_filters": network.init_filters,
        "blocks_down": network.blocks_down,
        "depths": network.dsdepth,
        "norm": network.norm,
        "activation": network.act,
        "resolution": resolution and list(resolution),
    }
    flips = set() if parameters.augment_mode == "none" else parameters.augment_flips
    return make_member(
        job,
        parameters.fold,
        replace(spec, normalise=normalise),
        stored.state_dict,
        path,
        settings=settings,
        patch=parameters.roi_size,
        axes=axes,
        window=WINDOW,
        mirror_axes=tuple(sorted(axes.order[axis] for axis in flips)),
        trained_on=_trained_on(path.parents[1], parameters),
        imported={
            "from": "Auto3DSeg",
            "checkpoint": path.name,
            "epoch": stored.epoch,
            "best_metric": stored.best_metric,
        },
    )


def _normalisation(parameters: HyperParameters, spec: InputSpec, path: Path) -> tuple[Normalise, ...]:
    if parameters.crop_foreground and not parameters.extra_modalities:
        raise HnsegError(f"{path}: crop_foreground=true crops a lone image to what is above 0; train without")
    usual = "range" if parameters.modality.lower() == "ct" else "meanstd"
    modes = [parameters.normalize_mode or usual, *parameters.extra_modalities.values()]
    check_channels(modes, spec.channel_names, path)
    check_channels([parameters.modality], spec.channel_names[:1], path)
    if unknown := [mode for mode in modes if mode not in _MODES]:
        raise HnsegError(f"{path}: normalize_mode={unknown[0]}: hnseg has {', '.join(_MODES)}; train so")
    lower, upper = parameters.intensity_bounds
    constants = {"range": {"lower": lower, "upper": upper}}
    return tuple(Normalise(_MODES[mode], **constants.get(_MODES[mode], {})) for mode in modes)


def _trained_on(folder: Path, parameters: HyperParameters) -> list[str] | None:
    """The cases of the other folds; None without a datalist: the member passes as trained on any case."""
    listed = parameters.data_list_file_path
    path = listed if listed.is_file() else folder.parent / listed.name
    if not path.is_file():
        return None
    folds = read_split_file(path).folds
    return sorted(case_id for k, cases in enumerate(folds) if k != parameters.fold for case_id in cases)
