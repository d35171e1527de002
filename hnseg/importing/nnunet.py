"""An nnU-Net v2 results folder → bundle members."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from hnseg.card import Axes, Normalise, Number, Shape, Window
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

WINDOW = Window(tiling="nnunet", overlap=0.5)  # at test time; no key of the plans
# Axes of (z, y, x) that the array of each reader has the other way round than an image in LPS.
_READERS: dict[str, tuple[int, ...]] = {
    "SimpleITKIO": (),
    "NibabelIO": (),
    "SimpleITKIOWithReorient": (1, 2),  # both bring images to RAS
    "NibabelIOWithReorient": (1, 2),
}
_SCHEMES: dict[str, Any] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale",
    "NoNormalization": "none",
}
# Networks and the files of conf/model/ that have them; their arguments by nnU-Net's and by hnseg's names.
_MODELS = {"PlainConvUNet": "plainconv", "ResidualEncoderUNet": "resenc"}
_COUNTS = {
    "PlainConvUNet": {"n_conv_per_stage": "convolutions"},
    "ResidualEncoderUNet": {"n_blocks_per_stage": "blocks"},
}
_SETTINGS = {
    "features_per_stage": "features",
    "strides": "strides",
    "kernel_sizes": "kernels",
    "n_conv_per_stage_decoder": "decoder_convolutions",
}
# What hnseg's networks have in common, as plans spell it; all that nnU-Net's own planners write.
_FIXED: dict[str, tuple[Any, ...]] = {
    "conv_op": ("torch.nn.modules.conv.Conv3d",),
    "conv_bias": (True,),
    "norm_op": ("torch.nn.modules.instancenorm.InstanceNorm3d",),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
    "nonlin_kwargs": ({"inplace": True}, {}, None),
    "nonlin_first": (False,),
    "deep_supervision": (True, False),  # hnseg's networks supervise while they train
}


class Intensities(BaseModel):
    """Foreground statistics of a channel."""

    lower: Number = Field(alias="percentile_00_5")
    upper: Number = Field(alias="percentile_99_5")
    mean: Number
    std: Number


class Plans(BaseModel):
    """plans.json."""

    dataset_name: str
    image_reader_writer: Literal[tuple(_READERS)]  # type: ignore[valid-type]
    transpose_forward: tuple[int, int, int]
    configurations: dict[str, dict[str, Any]]
    intensities: dict[int, Intensities] = Field({}, alias="foreground_intensity_properties_per_channel")

    @property
    def axes(self) -> Axes:
        """The network's axes: turned as its reader and the plans turn them."""
        turned = _READERS[self.image_reader_writer]
        flip = tuple(n for n, axis in enumerate(self.transpose_forward) if axis in turned)
        return Axes(self.transpose_forward, flip)

    def merged(self, name: str) -> dict[str, Any]:
        """A configuration with what it inherits."""
        own = self.configurations[name]
        return {**self.merged(own["inherits_from"]), **own} if "inherits_from" in own else own


class Architecture(BaseModel):
    """A network of the plans of nnU-Net 2.4 and newer."""

    network_class_name: str
    arch_kwargs: dict[str, Any]


class Configuration(BaseModel):
    """One configuration of the plans, for instance 3d_fullres; axes are the network's."""

    patch_size: Shape
    spacing: Spacing
    normalization_schemes: list[Literal[tuple(_SCHEMES)]]  # type: ignore[valid-type]
    use_mask_for_norm: list[Literal[False]]  # hnseg normalises over the whole ROI
    preprocessor_name: Literal["DefaultPreprocessor"] = "DefaultPreprocessor"
    previous_stage: Literal[None, ""] = None  # hnseg gives a network images alone
    architecture: Architecture


class Dataset(BaseModel):
    """dataset.json. hnseg has no regions, whose values are lists, and no ignore label."""

    labels: dict[str, int]
    channel_names: dict[int, str]


class Stored(BaseModel):
    """A checkpoint."""

    network_weights: dict[str, Any]
    init_args: dict[str, Any]
    trainer_name: str
    current_epoch: int
    inference_allowed_mirroring_axes: tuple[int, ...] | None = None


def import_nnunet(
    folder: Path,
    overrides: Sequence[str],
    out: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: Literal["final", "best"] = "final",
) -> list[str]:
    """Makes a bundle member of each fold of a results folder.

    Args:
        folder: Holds plans.json, dataset.json and fold_K/.
        overrides: As for hnseg train: the stage, and the recipe whose scaling made the data set's images.
        out: The bundle; it is extended where it exists.
        folds: Numbers of folds, or `all`, which was trained on every case; None takes all that are there.
        checkpoint: Which of a fold's.

    Returns:
        The members' names.

    Raises:
        HnsegError: A file that is missing or unsafe, or a network that hnseg cannot run as nnU-Net does.
    """
    plans = parse(Plans, _read_json(folder / "plans.json"), folder / "plans.json")
    dataset = parse(Dataset, _read_json(folder / "dataset.json"), folder / "dataset.json")
    name = f"checkpoint_{checkpoint}.pth"
    paths = [folder / f"fold_{fold}" / name for fold in folds or ()] or sorted(folder.glob(f"fold_*/{name}"))
    if not paths:
        raise HnsegError(f"{folder}: no fold_*/{name} in it; name a trained configuration's folder")
    return add_members(out, (_member(plans, dataset, path, overrides) for path in paths))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HnsegError(f"{path}: cannot be read ({error}); name a whole nnU-Net results folder") from error


def _architecture(node: Architecture, source: Path) -> tuple[str, dict[str, Any]]:
    """The class of a plan's network, whose name hnseg shares, and the arguments of hnseg's."""
    name = node.network_class_name.rpartition(".")[2]
    if name not in _MODELS:
        raise HnsegError(f"{source}: the network {name} is none of hnseg's, which are {', '.join(_MODELS)}")
    names = _SETTINGS | _COUNTS[name]
    for key, value in node.arch_kwargs.items():
        if key not in names and key != "n_stages" and value not in _FIXED.get(key, ()):
            known = f"hnseg's has {_FIXED[key][0]}" if key in _FIXED else "unknown to hnseg"
            raise HnsegError(f"{source}: {name} with {key}={value}; {known}")
    return name, {ours: node.arch_kwargs[theirs] for theirs, ours in names.items()}


def _member(plans: Plans, dataset: Dataset, path: Path, overrides: Sequence[str]) -> Trained:
    folder, suffix = path.parents[1], path.parent.name.removeprefix("fold_")
    fold = int(suffix) if suffix.isdigit() else suffix
    source, axes = folder / "plans.json", plans.axes
    stored = parse(Stored, read_foreign_checkpoint(path), path)
    name = stored.init_args["configuration"]
    if name not in plans.configurations:
        raise HnsegError(f"{source}: configurations has no {name}; copy the plans of this training")
    configuration = parse(Configuration, plans.merged(name), f"{source}: {name}")
    network, settings = _architecture(configuration.architecture, source)
    job, stage, spec = compose(_MODELS[network], network, overrides)
    check_spacing(configuration.spacing, [stage.spacing[::-1][axis] for axis in axes.order], 1e-3, source)
    classes = [name for name, value in sorted(dataset.labels.items(), key=lambda label: label[1]) if value]
    check_classes(classes, stage, folder / "dataset.json")
    channels = [name for _, name in sorted(dataset.channel_names.items())]
    check_channels(channels, spec.channel_names, folder / "dataset.json")
    normalise = [
        Normalise(_SCHEMES[name], **(plans.intensities[n].model_dump() if name == "CTNormalization" else {}))
        for n, name in enumerate(configuration.normalization_schemes)
    ]
    return make_member(
        job,
        fold,
        replace(spec, normalise=tuple(normalise)),
        stored.network_weights,
        path,
        settings=settings,
        patch=configuration.patch_size,
        axes=axes,
        window=WINDOW,
        mirror_axes=tuple(sorted(axes.order[axis] for axis in stored.inference_allowed_mirroring_axes or ())),
        trained_on=_trained_on(folder, plans.dataset_name, fold),
        imported={
            "from": "nnU-Net",
            "checkpoint": f"{path.parent.name}/{path.name}",
            "trainer": stored.trainer_name,
            "configuration": name,
            "epoch": stored.current_epoch,
        },
    )


def _trained_on(folder: Path, dataset: str, fold: int | str) -> list[str] | None:
    """The fold's training cases by splits_final.json; None where they are unknown.

    The file lies with nnU-Net's preprocessed data beside the results' root, or is copied to the folder.
    """
    preprocessed = folder.resolve().parents[2] / "nnUNet_preprocessed" / dataset
    path = next((p for p in (folder, preprocessed) if (p / "splits_final.json").is_file()), None)
    if path is None:
        return None
    splits = _read_json(path / "splits_final.json")
    if fold == "all":
        return sorted({case for split in splits for part in ("train", "val") for case in split[part]})
    # nnU-Net draws a split at random for a fold that its file does not have.
    return sorted(splits[int(fold)]["train"]) if int(fold) < len(splits) else None
