"""What a training tells of itself: a bar for the whole run, and a file for `hnseg runs`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hnseg.files import replacing
from hnseg.training.checkpoints import validation_scores


class RunProgress(L.Callback):
    """A bar over all steps of a run; where there is no terminal, a line about every tenth of it.

    Args:
        title: Says which run this is.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = Console(stderr=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the bar where the run stands."""
        self.epochs = trainer.max_epochs or 1
        self.steps = int(trainer.estimated_stepping_batches)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=self.console,
            disable=not (trainer.is_global_zero and self.console.is_terminal),
        )
        self.task = self.progress.add_task(
            self.title, total=self.steps, completed=trainer.global_step, epoch=trainer.current_epoch,
            epochs=self.epochs, scores="",
        )  # fmt: skip
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Moves the bar on by a step."""
        self.progress.update(self.task, completed=trainer.global_step, epoch=trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the newest loss and Dice."""
        scores = "  ".join(
            f"{name.removeprefix('train/').removeprefix('val/')} {float(value):.3f}"
            for name, value in trainer.callback_metrics.items()
            if name in ("train/loss", "val/dice")
        )
        self.progress.update(self.task, scores=scores)
        epoch = trainer.current_epoch + 1
        tenth = max(1, self.epochs // 10)
        if (
            not self.console.is_terminal
            and trainer.is_global_zero
            and (epoch % tenth == 0 or epoch == self.epochs)
        ):
            self.console.print(f"{self.title}: epoch {epoch}/{self.epochs}  {scores}", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        self.progress.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Gives the terminal back before the error is shown."""
        if hasattr(self, "progress"):
            self.progress.stop()


class ProgressFile(L.Callback):
    """Writes after each epoch how far the run is: `epoch` of `epochs`, `seconds` an epoch, `best`.

    `best` is what will be the finished run's score: val/dice of best.ckpt, whichever score chooses that.

    Args:
        path: The file, JSON.
        best: The checkpoint.
    """

    def __init__(self, path: Path, best: Path) -> None:
        self.path, self.best = path, best
        self.choice: float | None = None  # the score that chose best.ckpt
        self.dice: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes when this process began, and where: a run taken up again has its first epochs behind it."""
        self.started, self.done = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the file."""
        epoch = trainer.current_epoch + 1
        choice = getattr(trainer.checkpoint_callback, "best_model_score", None)
        if choice is not None and choice != self.choice:
            self.choice, self.dice = float(choice), validation_scores(self.best)["val/dice"]
        state = {
            "epoch": epoch,
            "epochs": trainer.max_epochs,
            "seconds": (time.monotonic() - self.started) / (epoch - self.done),
            "best": self.dice,
        }
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(state) + "\n")
