"""An Auto3DSeg SegResNet folder → bundle members."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any

import yaml

from hnseg.data.intensity import InputSpec, Normalise
from hnseg.data.splits import read_split_file
from hnseg.errors import HnsegError
from hnseg.files import digest_file
from hnseg.imaging.stage import Stage
from hnseg.importing.members import (
    add_members,
    are_bounds,
    are_lengths,
    are_names,
    are_sides,
    compose,
    filled,
    misplaced,
    reading,
    swapped,
)
from hnseg.inference.predictor import Axes
from hnseg.job import Config, describe, make_input, make_stage
from hnseg.models.checkpoint import Trained, read_foreign_checkpoint

# How the segmenter shows a volume: written in its code, no key of the configuration.
WINDOW = {"tiling": "monai", "overlap": 0.625}
_DEFAULTS: dict[str, Any] = {
    "modality": "mri",
    "extra_modalities": {},
    "intensity_bounds": [-250, 250],
    "roi_size": [128, 128, 128],
    "resample_resolution": [1.0, 1.0, 1.0],
    "crop_foreground": True,
    "class_names": [],
    "augment_flips": [0, 1, 2],
    "fold": 0,
}
# What the values that are read must be, and whether one is.
_SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "modality": ("a name", lambda told: isinstance(told, str)),
    "normalize_mode": ("a name", lambda told: isinstance(told, str)),
    "extra_modalities": ("names by key", lambda told: isinstance(told, dict) and are_names([*told.values()])),
    "intensity_bounds": ("two numbers, the lower first", are_bounds),
    "roi_size": ("three whole numbers above 0", are_sides),
    "resample_resolution": ("three numbers above 0", are_lengths),
    "spacing_median": ("three numbers above 0", are_lengths),
    "class_names": ("a list of names", are_names),
    "augment_flips": ("a list of axes 0, 1, 2", lambda told: isinstance(told, list) and {*told} <= {0, 1, 2}),
    "fold": ("a whole number", lambda told: isinstance(told, Integral)),
    "network": ("a mapping", lambda told: isinstance(told, dict)),
}
# The modes that hnseg.data.normalise has; `meanstd` and the like leave voxels of 0 out.
_MODES = {"range": "range", "ct": "range", "pet": "sigmoid", "none": "none"}
# The template leaves a volume as it is where its spacing is this near to the one it resamples to.
_NEAR = (0.75, 1.25)
_FIXED = {"spatial_dims": 3, "blocks_up": None, "preprocess": None, "upsample_mode": "deconv"}
# Apex's NVFuser is the same norm, only faster.
_SAME = {"INSTANCE_NVFUSER": "INSTANCE"}


@dataclass(frozen=True)
class HyperParameters:
    """The configuration of one algorithm folder.

    Args:
        source: The file it was read from, for messages.
        entries: Its keys.
    """

    source: Path
    entries: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        """A value, its references to other keys resolved; the template's default for None.

        Raises:
            HnsegError: Not what the template has there, code, or references in a circle.
        """
        value = self._value(key, ())
        words, fits = _SHAPES.get(key, ("", None))
        if fits and value is not None and not fits(value):
            raise HnsegError(f"{self.source}: {key}={value}: it must be {words}; correct it")
        return value

    @property
    def axes(self) -> Axes:
        """RAS+; or else the file's own, which are (x, y, z) in LPS for files on hnseg's grids."""
        return Axes((2, 1, 0), (0, 1) if self["orientation_ras"] else ())

    @property
    def patch(self) -> tuple[int, int, int]:
        """The window, (z, y, x)."""
        return self.axes.shape_from_network(tuple(self["roi_size"]))

    @property
    def mirror_axes(self) -> list[int]:
        """Axes of (z, y, x) along which the training flipped at random."""
        flips = [] if self["augment_mode"] == "none" else self["augment_flips"]
        return sorted({self.axes.order[axis] for axis in flips})

    def check(self, stage: Stage) -> None:
        """Refuses what a member of the stage cannot be.

        Raises:
            HnsegError: Steps of the user's own, sigmoid outputs, other classes or another spacing.
        """
        for key in ("custom_data_transforms", "sliding_inferrer", "cache_image_int16"):
            if self[key]:
                raise self._refused(key, "hnseg has the template's usual steps alone; train without it")
        if self["sigmoid"]:
            raise self._refused("sigmoid", "hnseg wants a softmax over background and classes; train so")
        if self["crop_foreground"] and not self["extra_modalities"]:
            raise self._refused(
                "crop_foreground", "a lone image is cropped to what is above 0; train without"
            )
        names = [name for name in self["class_names"] if name.lower() != "background"]
        if misplaced(names, stage.classes):
            raise self._refused("class_names", f"{stage.name} has {list(stage.classes)}; train in this order")
        self._check_spacing(stage)

    def normalise(self, spec: InputSpec) -> tuple[Normalise, ...]:
        """The normalisation of each channel of an input chain.

        Raises:
            HnsegError: Other channels, another order, or a mode that hnseg does not have.
        """
        usual = "range" if self["modality"].lower() == "ct" else "meanstd"
        modes = [self["normalize_mode"] or usual, *self["extra_modalities"].values()]
        shown = spec.channel_names
        if len(modes) != len(shown):
            raise HnsegError(
                f"{self.source}: {len(modes)} channels ({', '.join(modes)}) where the stage and recipe show "
                f"{len(shown)} ({', '.join(shown)}); choose stage= and cte=true|false to match"
            )
        if swapped([self["modality"], *modes], [shown[0], *shown]):
            raise HnsegError(
                f"{self.source}: modality={self['modality']} and channels normalised as {', '.join(modes)} "
                f"where hnseg shows {', '.join(shown)}; train in this order"
            )
        return tuple(map(self._channel, modes, shown))

    def network(self, channels: int, classes: int) -> dict[str, Any]:
        """Settings of `hnseg.models.nets.SegResNetDS`.

        Args:
            channels: Of the input.
            classes: Of the output, background included.

        Raises:
            HnsegError: Another network, or settings that hnseg's does not have.
        """
        told = dict(self["network"] or {})
        if str(told.pop("_target_", None)).rpartition(".")[2] != "SegResNetDS":
            raise self._refused("network", "SegResNetDS alone is imported; choose another folder")
        for key, wanted in {**_FIXED, "in_channels": channels, "out_channels": classes}.items():
            if (value := told.pop(key, wanted)) != wanted:
                raise HnsegError(
                    f"{self.source}: network.{key}={value}, the member would have {wanted}; choose another "
                    "folder or stage="
                )
        resolution = told.pop("resolution", None)
        settings = {
            "init_filters": index(told.pop("init_filters", 32)),
            "blocks_down": list(map(index, told.pop("blocks_down", (1, 2, 2, 4)))),
            "depths": index(told.pop("dsdepth", 1)),
            "norm": self._layer("norm", told.pop("norm", "BATCH")),
            "activation": self._layer("act", told.pop("act", "RELU")),
            "resolution": self["resample_resolution"] if self["anisotropic_scales"] else resolution,
        }
        if told:
            raise HnsegError(
                f"{self.source}: network.{', '.join(told)} not known here; choose another folder"
            )
        return settings

    def _check_spacing(self, stage: Stage) -> None:
        # Without resampling, the network knows the spacing of its training data.
        key = "resample_resolution" if self["resample"] else "spacing_median"
        pairs = zip(self[key] or stage.spacing, stage.spacing, strict=True)
        if not all(_NEAR[0] * told <= spacing <= _NEAR[1] * told for told, spacing in pairs):
            remedy = f"stage={stage.name} has {list(stage.spacing)} mm; choose another stage or stage.spacing"
            raise self._refused(key, remedy)

    def _channel(self, mode: str, shown: str) -> Normalise:
        if mode not in _MODES:
            raise HnsegError(
                f"{self.source}: normalize_mode={mode} ({shown}) is not among hnseg's ({', '.join(_MODES)}); "
                "train with one of them"
            )
        if _MODES[mode] == "range":
            lower, upper = self["intensity_bounds"]
            return Normalise("range", lower=float(lower), upper=float(upper))
        return Normalise(_MODES[mode])  # type: ignore[arg-type]

    def _layer(self, key: str, told: Any) -> str | list[Any]:
        """A layer of MONAI's factories: its name, or name and arguments if any make a difference."""
        match told:
            case str(name):
                arguments: dict[str, Any] = {}
            case [str(name), dict(given)]:
                arguments = {one: value for one, value in given.items() if one != "inplace"}
            case _:
                raise HnsegError(
                    f"{self.source}: network.{key}={told}: it must be a name, or a name and a mapping of "
                    "arguments; correct it"
                )
        name = _SAME.get(name.upper(), name.upper())
        return [name, arguments] if arguments else name

    def _value(self, key: str, above: tuple[str, ...]) -> Any:
        """A key's value, whatever it is; `above` are the keys whose references led here."""
        value = self._resolved(key, self.entries.get(key), (*above, key))
        return _DEFAULTS.get(key) if value is None else value

    def _resolved(self, key: str, value: Any, above: tuple[str, ...]) -> Any:
        """`@key` is another key's value; an expression would be code, which is not run."""
        if isinstance(value, dict):
            return {name: self._resolved(f"{key}.{name}", one, above) for name, one in value.items()}
        if isinstance(value, str) and value.startswith("$"):
            raise HnsegError(f"{self.source}: {key}={value} is code, which is not run; write its value")
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        if value[1:] in above:
            raise HnsegError(f"{self.source}: {key}={value} leads back to itself; write its value")
        return self._value(value[1:], above)

    def _refused(self, key: str, reason: str) -> HnsegError:
        return HnsegError(f"{self.source}: {key}={self[key]}: {reason}")


CHECKPOINT, PARAMETERS = Path("model/model.pt"), Path("configs/hyper_parameters.yaml")


def import_auto3dseg(folder: Path, overrides: Sequence[str], out: Path) -> list[str]:
    """Makes bundle members of one algorithm folder, or of all `segresnet_*` of a work directory.

    Args:
        folder: The folder.
        overrides: As for train.py: the stage, and the recipe whose scaling made the network's images.
        out: The bundle.

    Returns:
        The members' names.

    Raises:
        HnsegError: No SegResNet there, or one that hnseg cannot run as Auto3DSeg does.
    """
    config = compose("segresnet", overrides)
    return add_members(out, _members(_find(folder), config))


def _find(folder: Path) -> list[Path]:
    """The algorithm folders."""
    found = [folder] if (folder / CHECKPOINT).exists() else []
    found = found or sorted(path.parents[1] for path in folder.glob(f"segresnet_*/{CHECKPOINT}"))
    if not found:
        raise HnsegError(
            f"{folder}: neither {CHECKPOINT} nor segresnet_*/{CHECKPOINT} in it; name an Auto3DSeg work "
            "directory or one of its segresnet folders"
        )
    return found


def _members(folders: Sequence[Path], config: Config) -> Iterator[Trained]:
    """Card and network of each folder, one at a time: a network is large."""
    for folder in folders:
        path = folder / CHECKPOINT
        stored = read_foreign_checkpoint(path)
        parameters = _parameters(folder, stored)
        with reading(f"{path}: it and {PARAMETERS} are", "Auto3DSeg"):
            card = _card(folder, stored, parameters, config)
            weights = stored["state_dict"]
        yield card, filled(card, weights, path, f"the configuration in {parameters.source}")


def _parameters(folder: Path, stored: dict[str, Any]) -> HyperParameters:
    path, told = folder / CHECKPOINT, stored.get("config")
    if not told:
        path = folder / PARAMETERS
        try:
            told = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise HnsegError(f"{path}: cannot be read ({reason}), and model.pt carries no config") from error
    if not isinstance(told, dict):
        raise HnsegError(f"{path}: its configuration is {told!r:.60}, no mapping; copy the folder again")
    return HyperParameters(path, told)


def _card(
    folder: Path, stored: dict[str, Any], parameters: HyperParameters, config: Config
) -> dict[str, Any]:
    stage = make_stage(config)
    parameters.check(stage)
    config = config | {"fold": int(parameters["fold"]), "training": {"patch": list(parameters.patch)}}
    spec = make_input(config, stage)
    # What is smaller than the window is padded there, after the normalisation too.
    spec = replace(spec, normalise=parameters.normalise(spec), pad_to=None)
    settings = {"_target_": config["model"]["settings"]["_target_"]}
    settings |= parameters.network(spec.channels, len(stage.classes) + 1)
    axes = parameters.axes
    return describe(
        config | {"model": {**config["model"], "settings": settings, "window": WINDOW}},
        stage,
        spec,
        axes={"order": list(axes.order), "flip": list(axes.flip)},
        mirror_axes=parameters.mirror_axes,
        trained_on=_trained_on(folder, parameters),
        imported={
            "from": "Auto3DSeg",
            "checkpoint": CHECKPOINT.name,
            "sha256": digest_file(folder / CHECKPOINT),
            "epoch": int(stored.get("epoch", 0)),
            "best_metric": float(stored.get("best_metric", 0)),
        },
    )


def _trained_on(folder: Path, parameters: HyperParameters) -> list[str] | None:
    """The cases of the other folds; the datalist lies where the configuration says, or beside the folder.

    Returns:
        None where it is gone, so that the member passes as trained on any case.
    """
    listed = Path(str(parameters["data_list_file_path"] or ""))
    found = [path for path in (listed, folder / listed.name, folder.parent / listed.name) if path.is_file()]
    if not found:
        return None
    folds = read_split_file(found[0]).folds
    return sorted(case_id for k, cases in enumerate(folds) if k != parameters["fold"] for case_id in cases)
