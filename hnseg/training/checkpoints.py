"""Checkpoints: whole or absent on disk, the best, the last, and averaged weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.models.checkpoint import CARD


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, down to the disk, and moves it there.

    Lightning's own is written in the folder for temporary files and moved from there, which between file
    systems is a copy that can be cut off.

    Args:
        last: The checkpoint to resume from.
        previous: What keeps the one before it.
    """

    def __init__(self, last: Path, previous: Path) -> None:
        super().__init__()
        self.last, self.previous = last, previous

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Saves a checkpoint.

        Raises:
            HnsegError: It cannot be written, for instance because the disk is full; what was there stays.
        """
        target = Path(path)
        with replacing(target) as temporary:
            _write(checkpoint, temporary)
            if target == self.last and target.exists():
                # A second name for the old file, so that one whole checkpoint is there at any moment.
                with replacing(self.previous) as kept:
                    os.link(target, kept)


def _write(checkpoint: Mapping[str, Any], temporary: Path) -> None:
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch finds its file too short, and hides why
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def resumable(last: Path, previous: Path) -> Path | None:
    """The checkpoint to go on from, None where nothing has been trained.

    A damaged one is told, passed over for the one before, and removed, lest it become that.

    Raises:
        HnsegError: Only damaged ones are left.
    """
    there = [path for path in (last, previous) if path.exists()]
    if not there:
        return None
    damaged: dict[Path, str] = {}
    for path in there:
        reason = _damage(path)
        if reason is None:
            for other in damaged:
                print(f"{other} is damaged ({damaged[other]}); going on from {path.name}", file=sys.stderr)
                other.unlink()
            return path
        damaged[path] = reason
    told = ", ".join(f"{path} ({reason})" for path, reason in damaged.items())
    raise HnsegError(f"damaged checkpoints: {told}; overwrite=true starts the run anew")


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, which carry check sums; None if nothing is."""
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()
    except (BadZipFile, OSError, EOFError) as error:
        return str(error) or "cut short"
    return None if broken is None else f"{broken} differs from its check sum"


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
