"""What a training needs beside the module: checkpoints and averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint

from hnseg.errors import HnsegError
from hnseg.models.member import CARD


class ComparedEMA(EMAWeightAveraging):
    """Validates the network's own weights and their moving average in turns.

    best.ckpt then holds whichever validated better, at the price of one validation; last.ckpt holds both.
    """

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _is_averages_turn(trainer):
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _is_averages_turn(trainer):
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # What is saved while validating is best.ckpt: the weights that were validated.
        if not trainer.validating or _is_averages_turn(trainer):
            super().on_save_checkpoint(trainer, pl_module, checkpoint)


class LastCheckpoint(ModelCheckpoint):
    """Saves once the epoch's means are in the loggers.

    Lightning logs them after it has saved: killed between the two, a run would lack them for good, for it
    goes on behind them.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        connector = trainer._logger_connector
        connector.on_epoch_end()  # hands the means to callbacks and bars
        row: dict[str, Any] = {**connector.metrics["log"], "epoch": trainer.current_epoch}
        connector.log_metrics(row, step=trainer.global_step - 1)
        connector.reset_results()  # lest they be logged twice
        super().on_train_epoch_end(trainer, pl_module)


def _is_averages_turn(trainer: L.Trainer) -> bool:
    """Every second validation, told by the epoch alone, so that a resumed training takes the same turns."""
    return (trainer.current_epoch // (trainer.check_val_every_n_epoch or 1)) % 2 == 1


def checkpoints(
    folder: Path, ema: float | None, *, compare: bool = False, monitor: str = "val/dice"
) -> list[L.Callback]:
    """best.ckpt by validation Dice, last.ckpt to resume from, averaged weights if asked for.

    Args:
        folder: The run's folder.
        ema: Decay of the exponential moving average that is validated and saved; None for none.
        compare: Validate the network's own weights too, and keep the better as best.ckpt.
        monitor: The score that chooses best.ckpt.
    """
    named: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
    averaging = ComparedEMA if compare else EMAWeightAveraging
    callbacks: list[L.Callback] = [] if ema is None else [averaging(decay=ema)]
    # Straight after the validation, while it is known which weights were validated.
    choice: dict[str, Any] = {"monitor": monitor, "mode": "max", "save_on_train_epoch_end": False}
    best = ModelCheckpoint(folder, filename="best", **choice, **named)
    last = LastCheckpoint(folder, filename="last", save_on_train_epoch_end=True, **named)
    return [*callbacks, best, last, LearningRateMonitor()]


def step_of(checkpoint: Path | None) -> int:
    """Optimiser steps behind a checkpoint, 0 where there is none."""
    if checkpoint is None:
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def require_same_data(checkpoint: Path, card: dict[str, Any]) -> None:
    """Refuses to go on from a checkpoint on other images or labels than it has learnt from.

    Args:
        checkpoint: The one to resume from.
        card: Of the training that would go on, with `data` and `fingerprint`, digests of what was prepared.

    Raises:
        HnsegError: They have changed.
    """
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)[CARD]
    if any(key in stored and stored[key] != card[key] for key in ("data", "fingerprint")):
        raise HnsegError(
            f"{checkpoint}: was trained on other images or labels than are there now; put those back, or "
            "train anew with overwrite=true or another name=..."
        )


def validation_scores(best: Path) -> dict[str, float]:
    """The validation scores that the best checkpoint had when it was saved."""
    stored = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
    return {name: float(value) for name, value in stored[CARD]["scores"].items()}


def summarise(scores: dict[str, float]) -> str:
    """The validation Dice, and in which ROIs: those placed by the truth flatter the pipeline."""
    text = f"val/dice {scores['val/dice']:.4f} in ROIs placed by the truth"
    if "val_coarse/dice" in scores:
        text += f", {scores['val_coarse/dice']:.4f} in ROIs placed by coarse predictions"
    return text
