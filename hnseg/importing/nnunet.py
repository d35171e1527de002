"""An nnU-Net v2 results folder → bundle members."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hnseg.data.intensity import Normalise
from hnseg.errors import HnsegError
from hnseg.files import digest_file
from hnseg.imaging.stage import Stage
from hnseg.importing.members import (
    add_members,
    are_lengths,
    are_numbers,
    are_sides,
    compose,
    filled,
    misplaced,
    reading,
    swapped,
)
from hnseg.inference.predictor import Axes
from hnseg.job import describe, make_input, make_stage
from hnseg.models.bundle import Trained
from hnseg.models.checkpoint import read_foreign_checkpoint

_KINDS = {"PlainConvUNet": "plainconv", "ResidualEncoderUNet": "resenc"}
_COUNTS = {"plainconv": ("n_conv_per_stage", "convolutions"), "resenc": ("n_blocks_per_stage", "blocks")}
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
    "deep_supervision": (True, False),  # follows the mode here
}
_READ = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")


def architecture(configuration: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """hnseg's name of a plan's network, and its settings.

    Args:
        configuration: Of the plans, with what it inherits; of nnU-Net before 2.4 too, which wrote the
            network's numbers beside the others.
        where: To say in an error.

    Raises:
        HnsegError: A network that hnseg does not have.
    """
    told = configuration.get("architecture") or _older(configuration)
    name, settings = str(told["network_class_name"]).rpartition(".")[2], dict(told["arch_kwargs"])
    if name not in _KINDS:
        raise HnsegError(f"{where}: the network {name} is none of hnseg's, which are {', '.join(_KINDS)}")
    kind = _KINDS[name]
    theirs, ours = _COUNTS[kind]
    for key in sorted(settings.keys() - {*_READ, theirs}):
        if key not in _FIXED or settings[key] not in _FIXED[key]:
            wanted = f"hnseg builds it with {_FIXED[key][0]}" if key in _FIXED else "unknown to hnseg"
            raise HnsegError(f"{where}: {name} with {key}={settings[key]}; {wanted}")
    return kind, {
        "features": list(settings["features_per_stage"]),
        "strides": settings["strides"],
        "kernels": settings["kernel_sizes"],
        ours: settings[theirs],
        "decoder_convolutions": settings["n_conv_per_stage_decoder"],
    }


def _older(configuration: dict[str, Any]) -> dict[str, Any]:
    """The same from keys beside the others."""
    name, counts = configuration["UNet_class_name"], configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    kind = _KINDS.get(name, "plainconv")  # an unknown one is refused by its name
    return {
        "network_class_name": name,
        "arch_kwargs": {
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(counts))],
            "strides": configuration["pool_op_kernel_sizes"],
            "kernel_sizes": configuration["conv_kernel_sizes"],
            _COUNTS[kind][0]: counts,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        },
    }


# Axes of (z, y, x) that the array of each reader has the other way round than an image in LPS.
_READERS = {
    "SimpleITKIO": (),
    "NibabelIO": (),
    "SimpleITKIOWithReorient": (1, 2),  # both bring images to RAS
    "NibabelIOWithReorient": (1, 2),
}
_SCHEMES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale",
    "NoNormalization": "none",
}
_CT_CONSTANTS = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}


@dataclass(frozen=True)
class Plans:
    """A plan's file and its data set's.

    Args:
        folder: Holds plans.json and dataset.json.
        plans: The content of plans.json.
        dataset: The content of dataset.json.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Plans:
        """Reads both files of a results folder.

        Raises:
            HnsegError: One is missing or no JSON.
        """
        return cls(folder, read_json(folder / "plans.json"), read_json(folder / "dataset.json"))

    def configuration(self, name: str) -> Configuration:
        """One configuration, with what it inherits.

        Raises:
            HnsegError: There is none of that name, or it lacks a key.
        """
        known = self.plans.get("configurations", {})
        chain: list[dict[str, Any]] = []
        parent: str | None = name
        while parent is not None:
            if parent not in known or len(chain) > len(known):
                raise self.refused(f"configurations has no {parent}", "copy the plans of this training")
            chain.append(known[parent])
            parent = known[parent].get("inherits_from")
        merged = {key: value for one in reversed(chain) for key, value in one.items()}
        return Configuration(self, name, merged)

    def axes(self) -> Axes:
        """The network's axes: turned as its reader and the plan turn them."""
        reader = self.plans["image_reader_writer"]
        if reader not in _READERS:
            raise self.refused(f"image_reader_writer={reader}", f"hnseg knows {', '.join(_READERS)}")
        z, y, x = self.plans["transpose_forward"]
        return Axes((z, y, x), tuple(n for n, axis in enumerate((z, y, x)) if axis in _READERS[reader]))

    def check_labels(self, stage: Stage) -> None:
        """Refuses classes that are not the stage's.

        Raises:
            HnsegError: Regions, an ignore label, another number of classes, or one in another's place.
        """
        path, labels = self.folder / "dataset.json", dict(self.dataset["labels"])
        if any(isinstance(value, list) for value in labels.values()):
            raise HnsegError(f"{path}: labels are regions; hnseg's networks tell classes apart by softmax")
        if "ignore" in labels:
            raise HnsegError(f"{path}: labels has an ignore label; hnseg knows none")
        names = sorted((name for name in labels if name != "background"), key=lambda name: int(labels[name]))
        values = sorted(int(value) for value in labels.values())
        if values != list(range(len(stage.classes) + 1)) or misplaced(names, stage.classes):
            told = ", ".join(f"{name}={value}" for name, value in labels.items())
            wanted = ", ".join(f"{name}={n}" for n, name in enumerate(stage.classes, start=1))
            raise HnsegError(
                f"{path}: labels {told}; stage={stage.name} has {wanted}; choose the stage it was made for"
            )

    def check_channels(self, shown: Sequence[str]) -> None:
        """Refuses channels that the recipe does not make.

        Args:
            shown: What each channel of the recipe's input shows.

        Raises:
            HnsegError: Another number of channels, or PET where CT belongs, or the other way round.
        """
        path = self.folder / "dataset.json"
        channels = self.dataset.get("channel_names", self.dataset.get("modality", {}))
        names = [str(channels[key]) for key in sorted(channels, key=int)]
        if len(names) != len(shown):
            remedy = {(4, 2): "give cte=true", (2, 4): "give cte=false"}.get((len(names), len(shown)))
            raise HnsegError(
                f"{path}: {len(names)} channels ({', '.join(names)}), but stage and recipe make "
                f"{len(shown)}; {remedy or 'choose another stage'}"
            )
        if swapped(names, shown):
            raise HnsegError(
                f"{path}: channels {', '.join(names)} where hnseg shows {', '.join(shown)}; train in this "
                "order, or correct the names if they are wrong"
            )

    def refused(self, what: str, remedy: str) -> HnsegError:
        """What to raise about the plan."""
        return HnsegError(f"{self.folder / 'plans.json'}: {what}; {remedy}")


@dataclass(frozen=True)
class Configuration:
    """One configuration of a plan, for instance 3d_fullres.

    Args:
        plans: The plan.
        name: The configuration's.
        entries: Its keys, inherited ones included; axes are the network's.
    """

    plans: Plans
    name: str
    entries: dict[str, Any]

    def check(self, stage: Stage) -> None:
        """Refuses what hnseg would do otherwise than nnU-Net.

        Raises:
            HnsegError: A 2D network, one of a cascade, another preprocessor or another spacing.
        """
        if not are_sides(self.entries["patch_size"]):
            raise self._refused("patch_size", "hnseg's networks are 3D, so give three whole numbers above 0")
        if self.entries.get("previous_stage"):
            raise self._refused("previous_stage", "hnseg gives a network images alone")
        if self.entries.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
            raise self._refused("preprocessor_name", "hnseg knows DefaultPreprocessor")
        wanted = [stage.spacing[::-1][axis] for axis in self.plans.axes().order]
        told = self.entries["spacing"]
        if not are_lengths(told) or any(abs(a - b) > 1e-3 * b for a, b in zip(told, wanted, strict=True)):
            raise self._refused(
                "spacing", f"stage={stage.name} has {wanted} mm along these axes; set stage.spacing=[x,y,z]"
            )

    @property
    def patch(self) -> tuple[int, int, int]:
        """The window, (z, y, x)."""
        a, b, c = self.entries["patch_size"]
        return self.plans.axes().shape_from_network((a, b, c))

    @property
    def architecture(self) -> tuple[str, dict[str, Any]]:
        """hnseg's name of the network, and its settings."""
        return architecture(self.entries, f"{self.plans.folder / 'plans.json'}: {self.name}")

    @property
    def normalise(self) -> tuple[Normalise, ...]:
        """What nnU-Net does to each channel."""
        schemes, masked = self.entries["normalization_schemes"], self.entries["use_mask_for_norm"]
        if any(masked):
            raise self._refused(
                "use_mask_for_norm", "hnseg normalises over the whole ROI, without a mask of what is not zero"
            )
        properties = self.plans.plans.get("foreground_intensity_properties_per_channel")
        properties = properties or self.plans.plans.get("foreground_intensity_properties_by_modality", {})
        return tuple(self._scheme(name, properties, n) for n, name in enumerate(schemes))

    def _scheme(self, name: str, properties: dict[str, Any], channel: int) -> Normalise:
        if name not in _SCHEMES:
            raise self._refused("normalization_schemes", f"hnseg knows {', '.join(_SCHEMES)}")
        if name != "CTNormalization":
            return Normalise(_SCHEMES[name])  # type: ignore[arg-type]
        constants = [properties[str(channel)][theirs] for theirs in _CT_CONSTANTS.values()]
        if not are_numbers(constants, len(_CT_CONSTANTS)):
            raise self.plans.refused(
                f"{', '.join(_CT_CONSTANTS.values())} of channel {channel} are {constants}",
                "all must be numbers; copy the plans of this training",
            )
        return Normalise("ct", **dict(zip(_CT_CONSTANTS, map(float, constants), strict=True)))

    def _refused(self, key: str, remedy: str) -> HnsegError:
        return self.plans.refused(f"{self.name}.{key}={self.entries[key]}", remedy)


def mirror_axes(axes: Axes, allowed: Sequence[int] | None) -> list[int]:
    """The axes of (z, y, x) along which a checkpoint allows mirroring; it counts in the network's."""
    return sorted(axes.order[axis] for axis in allowed or ())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        HnsegError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HnsegError(f"{path}: {error.strerror}; name an nnU-Net results folder that holds it") from error
    except ValueError as error:
        raise HnsegError(f"{path}: no JSON ({error}); copy it again") from error


# nnU-Net's own, at test time.
WINDOW = {"tiling": "nnunet", "overlap": 0.5}


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
        overrides: As for train.py: the stage, and the recipe whose scaling made the data set's images.
        out: The bundle; it is extended where it exists.
        folds: Numbers of folds, or `all`, which was trained on every case; None takes all that are there.
        checkpoint: Which of a fold's.

    Returns:
        The members' names.

    Raises:
        HnsegError: A folder, fold or checkpoint that is not there or not safe to read, or networks that
            hnseg cannot run as nnU-Net does.
    """
    plans = Plans.read(folder)
    paths = _find(folder, folds, f"checkpoint_{checkpoint}.pth")
    return add_members(out, (_member(plans, path, overrides) for path in paths))


def _find(folder: Path, folds: Sequence[str] | None, name: str) -> list[Path]:
    """The checkpoints of the folds asked for."""
    if folds is None:
        found = sorted(folder.glob(f"fold_*/{name}"))
        if not found:
            raise HnsegError(f"{folder}: no fold_*/{name} in it; name a trained configuration's folder")
        return found
    paths = [folder / f"fold_{fold}" / name for fold in folds]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise HnsegError(f"--folds {','.join(folds)}: {', '.join(missing)} not there; leave it out for all")
    return paths


def _member(plans: Plans, path: Path, overrides: Sequence[str]) -> Trained:
    """Card and network of one checkpoint."""
    stored = read_foreign_checkpoint(path)
    with reading(f"{path}: it or the plans beside {plans.folder.name}/fold_* are", "nnU-Net v2"):
        configuration = plans.configuration(stored["init_args"]["configuration"])
        card = _card(configuration, path, stored, overrides)
        weights = stored["network_weights"]
    return card, filled(card, weights, path, str(plans.folder / "plans.json"))


def _card(
    configuration: Configuration, path: Path, stored: dict[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    plans, (kind, settings) = configuration.plans, configuration.architecture
    config = compose(kind, overrides)
    stage, fold = make_stage(config), path.parent.name.removeprefix("fold_")
    configuration.check(stage)
    plans.check_labels(stage)
    config["fold"] = int(fold) if fold.isdigit() else fold
    config["training"] = {"patch": list(configuration.patch)}
    target = config["model"]["settings"]["_target_"]
    config["model"] |= {"settings": {"_target_": target, **settings}, "window": WINDOW}
    spec = make_input(config, stage)
    plans.check_channels(spec.channel_names)
    axes = plans.axes()
    return describe(
        config,
        stage,
        # What is smaller than the window is padded there, after the normalisation too.
        replace(spec, normalise=configuration.normalise, pad_to=None),
        axes={"order": list(axes.order), "flip": list(axes.flip)},
        mirror_axes=mirror_axes(axes, stored.get("inference_allowed_mirroring_axes")),
        trained_on=_trained_on(plans, config["fold"]),
        imported={
            "from": "nnU-Net",
            "checkpoint": f"{path.parent.name}/{path.name}",
            "sha256": digest_file(path),
            "trainer": str(stored["trainer_name"]),
            "configuration": configuration.name,
            "epoch": int(stored["current_epoch"]),
        },
    )


def _trained_on(plans: Plans, fold: int | str) -> list[str] | None:
    """The fold's training cases, by the splits_final.json beside the results; None where nobody knows.

    It lies with nnU-Net's preprocessed data: beside the results' root by custom, or copied to the folder.
    """
    here, dataset = plans.folder.resolve(), str(plans.plans["dataset_name"])
    places = [here, here.parent, here.parent.parent.parent / "nnUNet_preprocessed" / dataset]
    path = next((one for place in places if (one := place / "splits_final.json").is_file()), None)
    if path is None:
        return None
    splits = read_json(path)
    if fold == "all":
        return sorted({case for split in splits for part in ("train", "val") for case in split[part]})
    # nnU-Net draws a split at random for a fold that its file does not have.
    return sorted(splits[int(fold)]["train"]) if int(fold) < len(splits) else None
