"""What can be refused before anything heavy is imported."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from hnseg.cases import Case, read_cases
from hnseg.errors import HnsegError
from hnseg.inference.decision import Decision
from hnseg.models.sides import divisor


def find_cohort(root: str | None, exclude: Sequence[str]) -> list[Case]:
    """The cases to train on.

    Raises:
        HnsegError: No root, nothing usable under it, or an excluded case that is not there.
    """
    if root is None:
        raise HnsegError(
            "data.root names the folder with the PET/CT cases and is not set: python train.py data.root=PATH "
            "... (without data, `make demo` makes a synthetic cohort and trains on it)"
        )
    cases = read_cases(Path(root))
    exclude = [str(case_id) for case_id in exclude]  # Hydra reads data.exclude=[12] as a number
    unknown = sorted(set(exclude) - {case.case_id for case in cases})
    if unknown:
        raise HnsegError(f"data.exclude={','.join(unknown)}: no such case in {root}; check the names")
    return [case for case in cases if case.case_id not in exclude]


def find_coarse(config: Mapping[str, Any], cases: Sequence[Case]) -> Path | None:
    """The folder of coarse predictions that place the fine ROI, or None where there is none.

    Raises:
        HnsegError: The recipe trains on predicted ROIs and there are none, cases lack a prediction, or
            cases.csv does not say of each that its networks had not been trained on it.
    """
    folder, train_roi = config["data"]["coarse"], config["recipe"]["roi"]["train"]
    if folder is None:
        if train_roi == "coarse":
            raise HnsegError(
                "recipe.roi.train=coarse needs coarse predictions and data.coarse is not set; make them "
                "with python infer.py until=coarse unseen=true out=COARSE"
            )
        return None
    if not Path(folder).is_dir():
        raise HnsegError(f"data.coarse={folder}: no such folder; give what infer.py until=coarse wrote")
    unseen = _unseen(Path(folder))
    names = sorted(case.case_id for case in cases)
    if missing := [name for name in names if not (Path(folder) / f"{name}.nii.gz").exists()]:
        raise HnsegError(
            f"data.coarse={folder}: no prediction of {', '.join(missing)}; make them, or exclude them"
        )
    if unsure := [name for name in names if name not in unseen]:
        raise HnsegError(
            f"data.coarse={folder}: cases.csv does not list {', '.join(unsure)}, so nobody knows which "
            "networks made their masks; make them anew with python infer.py until=coarse unseen=true"
        )
    if leaked := [name for name in names if not unseen[name]]:
        raise HnsegError(
            f"data.coarse={folder}: made by networks trained on {', '.join(leaked)}; make them anew with "
            "python infer.py until=coarse unseen=true"
        )
    return Path(folder)


def _unseen(folder: Path) -> dict[str, bool]:
    """Of each case that cases.csv lists, whether no network that made its mask was trained on it."""
    path = folder / "cases.csv"
    if not path.exists():
        raise HnsegError(
            f"{path}: not there, so nobody knows whether these are predictions of networks that have not "
            "seen the cases; make them with python infer.py until=coarse unseen=true"
        )
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case_id"]: row.get("unseen") == "yes" for row in csv.DictReader(file)}


_SCHEMES = ("zscore", "ct", "range", "sigmoid", "cohort", "rescale", "none")  # of hnseg.data.normalise
# What a recipe's keys may be; its decision is checked by the code that carries it out.
_CHOICES = {
    "pet": ("minmax", "suv", "raw"),
    "source": ("study", "head_crop"),
    "outside": ("air", "minus_one"),
    "head_crop": ("body", "corner"),
    "checkpoint": ("best", "compare"),
    "roi.train": ("truth", "coarse"),
    "roi.validate": ("truth", "coarse"),
    "normalise.ct": _SCHEMES,
    "normalise.pet": _SCHEMES,
}
_LESIONS = ("GTVp", "GTVn")


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Refuses a recipe that would be misunderstood.

    Raises:
        HnsegError: A choice that does not exist.
    """
    for key, known in _CHOICES.items():
        value: Any = recipe
        for part in key.split("."):
            value = value[part]
        if value not in known:
            raise HnsegError(f"recipe.{key}={value}: choose one of {', '.join(known)}")
    if unknown := set(recipe["minmax_again"]) - {"head", "coarse", "fine"}:
        raise HnsegError(f"recipe.minmax_again={','.join(sorted(unknown))}: name stages (head, coarse, fine)")
    for modality, powers in recipe["enhance"].items():
        if set(powers) - {"square", "cube_root"}:
            raise HnsegError(f"recipe.enhance.{modality}={list(powers)}: choose of square, cube_root")
    try:
        Decision.from_dict(decision_rules(recipe), _LESIONS)
    except HnsegError as error:
        raise HnsegError(f"recipe.{error}") from error


def decision_rules(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's rules from probabilities to a mask, as a card carries them."""
    return {**recipe["decision"], "cover": recipe["cover"], "fallback": recipe["fallback"]}


def check_window(recipe: Mapping[str, Any], stage: str, cte: bool) -> None:
    """Refuses CT in HU and PET in SUV where the input chain needs them between 0 and 1.

    Raises:
        HnsegError: No window, though the head crop is windowed, or enhancement takes powers of [0, 1].
    """
    unscaled = recipe["source"] == "head_crop" or recipe["pet"] == "raw"
    if cte and unscaled and recipe["enhance"]["pet"] and stage not in ("head", *recipe["minmax_again"]):
        raise HnsegError(
            f"recipe.enhance.pet: PET is not in [0, 1] in stage={stage}; set recipe.enhance.pet=[]"
        )
    if recipe["ct_window"]:
        return
    if stage != "head" and recipe["source"] == "head_crop":
        raise HnsegError("recipe.ct_window=null: the head crop is windowed; set recipe.source=study for HU")
    if cte and stage not in recipe["minmax_again"]:
        raise HnsegError(
            "recipe.ct_window=null with cte=true: the powers are of CT in [0, 1], not of HU; set a window, "
            "or cte=false"
        )


def check_stages(model: Mapping[str, Any]) -> None:
    """Refuses a U-Net whose lists speak of different numbers of stages.

    Raises:
        HnsegError: `features`, `strides` and `blocks` differ in length.
    """
    settings = model["settings"]
    lengths = {key: len(settings[key]) for key in ("features", "strides", "blocks") if key in settings}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} {count}" for key, count in lengths.items())
        raise HnsegError(
            f"model.settings of model={model['name']}: {counts} entries; give one for each stage"
        )


def check_patch(patch: Sequence[int] | None, model: Mapping[str, Any], stage: str) -> None:
    """Refuses a patch that the network would have to crop or pad on its own.

    Raises:
        HnsegError: No patch is set for this pair of stage and model, or its sides do not fit.
    """
    name = model["name"]
    if patch is None:
        raise HnsegError(
            f"training.patch is not set, and there is no conf/stage_model for stage={stage} model={name}; "
            "choose another pair or give training.patch=[z,y,x]"
        )
    sides = divisor(model)
    misfit = len(patch) != 3 or any(n % d or n < d for n, d in zip(patch, sides, strict=True))
    # A single voxel at the deepest stage has no variance for the instance norm.
    if misfit or tuple(patch) == sides:
        remedy = [max(int(np.ceil(n / d)), 2) * d for n, d in zip_longest(patch[:3], sides, fillvalue=1)]
        raise HnsegError(
            f"training.patch={list(patch)} does not fit model={name}, whose sides (z, y, x) must be "
            f"multiples of {list(sides)}, and not all the least; use training.patch={remedy}"
        )


def check_switches(config: Mapping[str, Any]) -> None:
    """Refuses what is neither on nor off: any text would count as on.

    Raises:
        HnsegError: A switch that is neither true nor false.
    """
    for key in ("model.gating", "recipe.coordinates"):
        group, _, name = key.partition(".")
        if not isinstance(config[group][name], bool):
            raise HnsegError(f"{key}={config[group][name]}: choose true or false")


def check_class_weights(weights: Sequence[float] | None, classes: Sequence[str]) -> None:
    """Refuses weights of the loss that are not one for each class.

    Args:
        weights: `loss.loss.class_weights`, background first; None weighs all alike.
        classes: Of the stage, without the background.

    Raises:
        HnsegError: Too few or too many, or one that is not positive.
    """
    if weights is None:
        return
    labels = ["background", *classes]
    fits = isinstance(weights, Sequence) and len(weights) == len(labels)
    if not fits or not all(isinstance(w, int | float) and w > 0 for w in weights):
        raise HnsegError(
            f"loss.loss.class_weights={weights}: give a positive number for each of {', '.join(labels)}, in "
            "this order"
        )


def check_length(training: Mapping[str, Any]) -> None:
    """Refuses a training that would never step, or never be validated.

    Raises:
        HnsegError: Epochs, batch size, iterations or validation interval that are no counting numbers,
            or fewer epochs than the interval.
    """
    for key in ("epochs", "batch_size", "iterations", "validate_every"):
        value = training[key]
        unset = key == "iterations" and value is None  # one pass over the training cases
        if not unset and not (isinstance(value, int) and value >= 1):
            raise HnsegError(f"training.{key}={value}: give a number of at least 1")
    epochs, interval = training["epochs"], training["validate_every"]
    if interval > epochs:
        raise HnsegError(
            f"training.validate_every={interval} with training.epochs={epochs} validates never; lower it"
        )


def padding(patch: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Shape (z, y, x) to which a stage's ROI is padded so that a patch is never larger; None if it fits."""
    z, y, x = (max(int(p), int(n)) for p, n in zip(patch, shape, strict=True))
    return None if (z, y, x) == tuple(shape) else (z, y, x)
