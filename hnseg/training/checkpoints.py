"""Checkpoints of a run: best.ckpt, last.ckpt to resume from, and the one before it, each whole on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hnseg.card import Card
from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.models.checkpoint import CARD
from hnseg.training.runs import RunFolder

RUN = "run"  # the key of the run's id


class RunCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place, syncs and moves it there; keeps the last but one.

    A checkpoint holds its run's id, and another run does not load it.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        with replacing(target) as temporary:
            _write({**checkpoint, RUN: self.folder.id}, temporary)
            if target == self.folder.last and target.exists():
                target.replace(self.folder.previous)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(path, *arguments, **options)
        if checkpoint.get(RUN) != self.folder.id:
            raise HnsegError(
                f"{path}: is of another run than {self.folder.path}; begin from its weights with "
                f"init_from={path}, or start anew with overwrite=true"
            )
        return checkpoint


def _write(checkpoint: dict[str, Any], temporary: Path) -> None:
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch finds its file too short, and hides why
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def find_checkpoint(folder: RunFolder, rank: int = 0) -> Path | None:
    """The checkpoint to resume from, None where nothing has been trained.

    Where the last is damaged it is the one before; rank 0 says so and removes the damaged one.

    Raises:
        HnsegError: Only damaged ones are left.
    """
    damaged: dict[Path, str] = {}
    for path in filter(Path.exists, (folder.last, folder.previous)):
        reason = _damage(path)
        if reason is None:
            for other in damaged if rank == 0 else ():
                print(f"{other} is damaged ({damaged[other]}); going on from {path.name}", file=sys.stderr)
                other.unlink()
            return path
        damaged[path] = reason
    if damaged:
        reasons = ", ".join(f"{path} ({reason})" for path, reason in damaged.items())
        raise HnsegError(f"damaged checkpoints: {reasons}; overwrite=true starts the run anew")
    return None


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
        if _validates_average(trainer):
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _validates_average(trainer):
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average too, save into best.ckpt where the network's own weights were validated."""
        if not trainer.validating or _validates_average(trainer):
            super().on_save_checkpoint(trainer, pl_module, checkpoint)


def _validates_average(trainer: L.Trainer) -> bool:
    """Every second validation, counted by epoch, so that a resumed training takes the same turns."""
    return (trainer.current_epoch // (trainer.check_val_every_n_epoch or 1)) % 2 == 1


class LastCheckpoint(ModelCheckpoint):
    """Saves after every epoch, once the means of its training steps are in the loggers.

    Lightning logs what `self.log` was given after it has saved: killed between the two, a run would lack
    that epoch for good. So training metrics are logged here, and `self.log(..., logger=False)` elsewhere.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]  # the schedule steps before the end

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics.items()  # Lightning has logged those of the validation
        row = {name: float(value) for name, value in metrics if not name.startswith("val")}
        row["lr"] = self.rate
        for logger in trainer.loggers:
            logger.log_metrics({**row, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
            logger.save()
        super().on_train_epoch_end(trainer, pl_module)


def checkpoint_callbacks(
    folder: Path, ema: float | None, *, compare: bool = False, monitor: str = "val/dice"
) -> list[L.Callback]:
    """best.ckpt by validation Dice, last.ckpt to resume from, averaged weights if asked for.

    Args:
        folder: The run's.
        ema: Decay of the exponential moving average that is validated and saved; None for none.
        compare: Validate the network's own weights too, and keep the better as best.ckpt.
        monitor: The score that chooses best.ckpt.
    """
    named: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False}
    averaging = ComparedEMA if compare else EMAWeightAveraging
    averages: list[L.Callback] = [] if ema is None else [averaging(decay=ema)]
    # Straight after the validation, while it is known which weights were validated.
    choice: dict[str, Any] = {"monitor": monitor, "mode": "max", "save_on_train_epoch_end": False}
    best = ModelCheckpoint(folder, filename="best", **choice, **named)
    last = LastCheckpoint(folder, filename="last", save_on_train_epoch_end=True, **named)
    return [*averages, best, last]


def step_of(checkpoint: Path | None) -> int:
    """Optimiser steps behind a checkpoint, 0 where there is none."""
    return 0 if checkpoint is None else int(_read(checkpoint)["global_step"])


def require_same_data(checkpoint: Path, card: Card) -> None:
    """Refuses to resume on other images or labels, by the digests `data` and `fingerprint` of both cards."""
    stored = _read(checkpoint)[CARD]
    if (stored["data"], stored["fingerprint"]) != (card.data, card.fingerprint):
        raise HnsegError(
            f"{checkpoint}: was trained on other images or labels than are there now; put those back, or "
            "train anew with overwrite=true or another name=..."
        )


def validation_scores(best: Path) -> dict[str, float]:
    """The validation scores that the best checkpoint had when it was saved."""
    return {name: float(value) for name, value in _read(best)[CARD]["scores"].items()}


def _read(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return stored
