"""What can be refused before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from hydra.utils import get_class

from hnseg.errors import HnsegError


def check_job(config: Mapping[str, Any]) -> None:
    """Refuses a training that would be misunderstood, or fail once everything heavy is there.

    Args:
        config: As plain lists and numbers.

    Raises:
        HnsegError: The first key that does not fit the others.
    """
    stage, model, training = config["stage"], config["model"], config["training"]
    check_stages(model)
    check_patch(training["patch"], model)
    check_class_weights(config["loss"]["loss"]["class_weights"], stage["classes"])


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


def check_patch(patch: Sequence[int], model: Mapping[str, Any]) -> None:
    """Refuses a patch that the network would have to crop or pad on its own.

    Raises:
        HnsegError: Its sides do not fit.
    """
    network: Any = get_class(model["settings"]["_target_"])
    sides = network.stride_product(model["settings"])
    misfit = len(patch) != 3 or any(n % d or n < d for n, d in zip(patch, sides, strict=True))
    # A single voxel at the deepest stage has no variance for the instance norm.
    if misfit or tuple(patch) == sides:
        remedy = [max(int(np.ceil(n / d)), 2) * d for n, d in zip_longest(patch[:3], sides, fillvalue=1)]
        raise HnsegError(
            f"training.patch={list(patch)} does not fit model={model['name']}, whose sides (z, y, x) must be "
            f"multiples of {list(sides)}, and not all the least; use training.patch={remedy}"
        )


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
    if not fits or not all(weight > 0 for weight in weights):
        raise HnsegError(
            f"loss.loss.class_weights={weights}: give a positive number for each of {', '.join(labels)}, in "
            "this order"
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
