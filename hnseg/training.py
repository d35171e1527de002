"""What a training needs beside the module: checkpoints, averaged weights, quiet libraries."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint

from hnseg.models.module import CARD


def checkpoints(folder: Path, ema: float | None) -> list[L.Callback]:
    """best.ckpt by validation Dice, last.ckpt to resume from, averaged weights if asked for.

    Args:
        folder: The run's folder.
        ema: Decay of the exponential moving average that is validated and saved; None for none.
    """
    named: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
    callbacks: list[L.Callback] = [] if ema is None else [EMAWeightAveraging(decay=ema)]
    best = ModelCheckpoint(folder, filename="best", monitor="val/dice", mode="max", **named)
    last = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, **named)
    return [*callbacks, best, last, LearningRateMonitor()]


def validation_scores(best: Path) -> dict[str, float]:
    """The validation scores that the best checkpoint had when it was saved."""
    stored = torch.load(best, map_location="cpu", weights_only=True)
    return {name: float(value) for name, value in stored[CARD]["scores"].items()}


def quiet() -> None:
    """Leaves the terminal to the progress bar: libraries speak only of what went wrong."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torchio")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
