"""What can be refused before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from hydra.utils import get_class

from hnseg.errors import HnsegError
from hnseg.kinds import POSITIVE
from hnseg.recipe import check_decision, check_window


def check_job(config: Mapping[str, Any]) -> None:
    """Refuses a training that would be misunderstood, or fail once everything heavy is there.

    Args:
        config: Of `hnseg.job_keys.read_job`; a patch that is not set is `???`.

    Raises:
        HnsegError: The first key that does not fit the others.
    """
    stage, model, training = config["stage"], config["model"], config["training"]
    check_stages(model)
    check_patch(None if training["patch"] == "???" else training["patch"], model, stage["name"])
    check_length(training, config["trainer"]["accumulate"])
    check_class_weights(config["loss"]["loss"]["class_weights"], stage["classes"])
    check_averages(training["ema"], config["recipe"]["checkpoint"])
    check_decision(config["recipe"])
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
    network: Any = get_class(model["settings"]["_target_"])
    sides = network.stride_product(model["settings"])
    misfit = len(patch) != 3 or any(n % d or n < d for n, d in zip(patch, sides, strict=True))
    # A single voxel at the deepest stage has no variance for the instance norm.
    if misfit or tuple(patch) == sides:
        remedy = [max(int(np.ceil(n / d)), 2) * d for n, d in zip_longest(patch[:3], sides, fillvalue=1)]
        raise HnsegError(
            f"training.patch={list(patch)} does not fit model={name}, whose sides (z, y, x) must be "
            f"multiples of {list(sides)}, and not all the least; use training.patch={remedy}"
        )


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
    if not fits or not all(map(POSITIVE.fits, weights)):
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
        HnsegError: Fewer epochs than the interval, or a batch that does not fall into equal parts.
    """
    batch = training["batch_size"]
    if batch % accumulate:
        raise HnsegError(
            f"trainer.accumulate={accumulate} with training.batch_size={batch}: give a number that divides it"
        )
    epochs, interval = training["epochs"], training["validate_every"]
    if interval > epochs:
        raise HnsegError(
            f"training.validate_every={interval} with training.epochs={epochs} validates never; lower it"
        )


def check_averages(ema: float | None, checkpoint: str) -> None:
    """Refuses to compare averaged weights that nobody averages.

    Args:
        ema: Of `training`, the decay of averaged weights.
        checkpoint: Of the recipe.

    Raises:
        HnsegError: There are none.
    """
    if checkpoint == "compare" and ema is None:
        raise HnsegError(
            "recipe.checkpoint=compare with training.ema=null: no averaged weights to compare; set "
            "training.ema=0.999, or recipe.checkpoint=best"
        )


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
