"""How a network is trained: patches, loss, optimiser and schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from hnseg.cli.planning.pair import Pair
from hnseg.data.dataset import PatchDataset
from hnseg.models.losses import DiceCELoss

Properties = dict[str, Any]


def read_training(pair: Pair, depths: int) -> Properties:
    """Properties of the paper's tables.

    Args:
        pair: The stage and network.
        depths: Supervised depths of the network.
    """
    training = pair.config["training"]
    loss: Any = pair.module.loss
    configured = pair.module.configure_optimizers()
    patch, batch = training["patch"], training["batch_size"]
    return {
        "Batch Size": batch,
        "Patch Size": patch,
        "ROI Size": patch,
        "Epochs": training["epochs"],
        "Iterations per Epoch": training["iterations"] or "one pass over the training cases",
        "Forced Foreground": _forced(pair),
        "Loss Function": _loss(loss.loss, len(pair.stage.classes) + 1),
        "Deep Supervision Weights": [round(weight, 4) for weight in loss.weights(depths)],
        "Optimizer": _optimizer(configured["optimizer"]),
        "Learning Rate": _rates(configured["lr_scheduler"], training["epochs"]),
        "Gradient Clipping": pair.config["optimizer"]["clip"],
        "AMP": pair.config["trainer"]["precision"] != "float32",  # `auto` is mixed on every GPU
        "Channels Last": _channels_last(pair),
        "Checkpoint": {"kept": pair.config["recipe"]["checkpoint"], "averaged weights": training["ema"]},
    }


def _forced(pair: Pair) -> str:
    patch, batch = pair.config["training"]["patch"], pair.config["training"]["batch_size"]
    samples = PatchDataset([], pair.spec, tuple(patch), batch, None, 0)
    return f"{batch - samples.unforced} of {batch} samples"


def _loss(loss: DiceCELoss, classes: int) -> Properties:
    """The loss of one depth; what it makes of a batch and of logits shows in its value."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 4, 4, 4, generator=generator)
    target = torch.randint(classes, (2, 4, 4, 4), generator=generator)
    together, shifted = loss(logits, target), loss(logits + 1, target)
    apart = (loss(logits[:1], target[:1]) + loss(logits[1:], target[1:])) / 2
    weighted = "" if loss.class_weights is None else "weighted "
    return {
        "terms": [f"{weighted}Dice", f"{weighted}cross-entropy"],
        "batch Dice": not torch.allclose(together, apart),
        "include background": loss.background,
        "squared pred": loss.squared,
        "softmax": torch.allclose(together, shifted),  # unlike the sigmoid, it sees differences alone
    }


def _optimizer(optimizer: torch.optim.Optimizer) -> Properties:
    named = {"learning rate": "initial_lr", "weight decay": "weight_decay"}
    group = optimizer.param_groups[0]
    settings = {name: group.get(named.get(name, name)) for name in (*named, "momentum", "nesterov")}
    return {"class": type(optimizer).__name__, **settings}


def _rates(scheduler: LRScheduler, epochs: int) -> dict[str, float]:
    """The learning rate in a few epochs, to three digits; stepped as Lightning does, after each epoch."""
    rates = []
    for _ in range(epochs):
        rates.append(float(f"{scheduler.get_last_lr()[0]:.3g}"))
        scheduler.optimizer.step()
        scheduler.step()
    second, middle = rates[min(1, epochs - 1)], rates[epochs // 2]
    return {"first": rates[0], "second": second, "middle": middle, "last": rates[-1]}


def _channels_last(pair: Pair) -> bool:
    pair.module.configure_model()
    kernels = [p for p in pair.module.network.parameters() if p.ndim == 5]
    return all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)
