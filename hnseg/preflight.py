"""What can be refused before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from hnseg.errors import HnsegError
from hnseg.models.sides import divisor
from hnseg.recipe import check_recipe, check_window


def check_job(config: Mapping[str, Any]) -> None:
    """Refuses a training that would be misunderstood, or fail once everything heavy is there.

    Args:
        config: The composed configuration as plain lists and numbers; a patch that is not set is `???`.

    Raises:
        HnsegError: The first key that does not fit.
    """
    stage, model, training = config["stage"], config["model"], config["training"]
    check_stages(model)
    check_patch(None if training["patch"] == "???" else training["patch"], model, stage["name"])
    check_length(training, config["trainer"]["accumulate"])
    check_processes(config["trainer"]["processes"])
    check_class_weights(config["loss"]["loss"]["class_weights"], stage["classes"])
    check_switches(config)
    check_recipe(config["recipe"])
    check_augment(config["augment"], coordinates=config["recipe"]["coordinates"])
    check_window(config["recipe"], stage["name"], config["cte"])


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
    for key in ("model.gating", "recipe.coordinates", "trainer.checkpointing", "trainer.compile"):
        group, _, name = key.partition(".")
        if not isinstance(config[group][name], bool):
            raise HnsegError(f"{key}={config[group][name]}: choose true or false")


def check_augment(augment: Mapping[str, Any], *, coordinates: bool) -> None:
    """Refuses a mix that cannot run where it is to run.

    Args:
        augment: The configuration's `augment`.
        coordinates: Whether the input has coordinate channels, which only the processor turns along.

    Raises:
        HnsegError: An unknown device; `cuda` with transforms of TorchIO's own, which compute in NumPy or
            SimpleITK, or with coordinates.
    """
    device = augment.get("device", "cpu")  # absent where somebody composes a mix without hnseg's
    if device not in ("cpu", "cuda"):
        raise HnsegError(f"augment.device={device}: choose cpu or cuda")
    if device == "cpu":
        return
    names = [transform["_target_"] for transform in augment["transforms"]]
    if foreign := next((name for name in names if name.startswith("torchio.")), None):
        raise HnsegError(
            f"augment.device=cuda: {foreign} runs on the processor alone; choose augment=nnunet or "
            "augment=auto3dseg, or augment.device=cpu"
        )
    if coordinates:
        raise HnsegError("augment.device=cuda with recipe.coordinates=true: choose augment.device=cpu")


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


def check_length(training: Mapping[str, Any], accumulate: int) -> None:
    """Refuses a training that would never step, or never be validated.

    Args:
        training: The configuration's `training`.
        accumulate: Parts a batch is worked on in.

    Raises:
        HnsegError: Epochs, batch size, iterations or validation interval that are no counting numbers,
            fewer epochs than the interval, or a batch that does not fall into equal parts.
    """
    for key in ("epochs", "batch_size", "iterations", "validate_every"):
        value = training[key]
        unset = key == "iterations" and value is None  # one pass over the training cases
        if not unset and not (isinstance(value, int) and value >= 1):
            raise HnsegError(f"training.{key}={value}: give a number of at least 1")
    batch = training["batch_size"]
    if type(accumulate) is not int or accumulate < 1 or batch % accumulate:
        raise HnsegError(
            f"trainer.accumulate={accumulate} with training.batch_size={batch}: give a number that divides it"
        )
    epochs, interval = training["epochs"], training["validate_every"]
    if interval > epochs:
        raise HnsegError(
            f"training.validate_every={interval} with training.epochs={epochs} validates never; lower it"
        )


def check_processes(processes: int | str) -> None:
    """Refuses a number of processes that is none.

    Raises:
        HnsegError: Neither `auto` nor a counting number.
    """
    if processes != "auto" and (type(processes) is not int or processes < 1):
        raise HnsegError(f"trainer.processes={processes}: give a number, or auto for one on each GPU")


def check_share(config: Mapping[str, Any], processes: int, validated: int) -> None:
    """Refuses a training that does not fall into equal parts for its processes.

    Args:
        config: The composed configuration.
        processes: That train together.
        validated: Validation cases, of which each process takes some.

    Raises:
        HnsegError: The batch is no multiple of them, or some would have nothing to validate.
    """
    batch, accumulate = config["training"]["batch_size"], config["trainer"]["accumulate"]
    parts = processes * accumulate
    if batch % parts:
        in_parts = f" and trainer.accumulate={accumulate}" if accumulate > 1 else ""
        raise HnsegError(
            f"training.batch_size={batch} is not divisible among {processes} processes{in_parts}: "
            f"it is the batch of all together; choose a multiple of {parts}, or another trainer.processes"
        )
    if validated < processes:
        raise HnsegError(
            f"trainer.processes: {processes} processes for {validated} validation cases; start fewer, or "
            "deal larger folds (data.folds)"
        )


def padding(patch: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int] | None:
    """Shape (z, y, x) to which a stage's ROI is padded so that a patch is never larger; None if it fits."""
    z, y, x = (max(int(p), int(n)) for p, n in zip(patch, shape, strict=True))
    return None if (z, y, x) == tuple(shape) else (z, y, x)
