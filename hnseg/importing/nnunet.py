"""An nnU-Net v2 results folder → bundle members.

    DATASET/TRAINER__PLANS__CONFIGURATION/plans.json, dataset.json
    DATASET/TRAINER__PLANS__CONFIGURATION/fold_K/checkpoint_final.pth

One member a fold. nnU-Net resamples to the plan's spacing by itself; here the stage's grid has it already.
Unlike nnU-Net, hnseg does not cut off margins in which every channel is zero: a network sees the whole ROI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hnseg.errors import HnsegError
from hnseg.importing.compose import compose
from hnseg.importing.members import add_members, filled, reading
from hnseg.importing.plans import Configuration, Plans, mirror_axes, read_json
from hnseg.job import describe, make_input, make_stage
from hnseg.models.bundle import Trained, digest
from hnseg.models.unpickle import read_checkpoint

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
    stored = read_checkpoint(path)
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
    config["model"] |= {"settings": settings, "window": WINDOW}
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
            "sha256": digest(path),
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
