"""What watches a training: progress, throughput, input gates, a loss that is NaN, and SIGTERM."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from hnseg.devices import gpu_peak_mib, peak_mib, reset_gpu_peak
from hnseg.errors import HnsegError, few
from hnseg.files import write_json
from hnseg.models.nets import ChannelGate
from hnseg.training.checkpoints import validation_scores
from hnseg.training.runs import RunFolder


class RunProgress(L.Callback):
    """Shows how far a run is: on the terminal, in train.log, and in progress.json for `hnseg runs`.

    A terminal has a bar over all steps; elsewhere, a line about every tenth of the run. train.log has
    a line of each epoch. progress.json holds `epoch`, `epochs`, `seconds` an epoch, validation included, and
    `best`: val/dice of best.ckpt.
    """

    def __init__(self, title: str, folder: RunFolder) -> None:
        self.title, self.folder = title, folder
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(title, scores="")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A resumed run has its first epochs behind it.
        self.started, self.done = time.monotonic(), trainer.current_epoch
        total = int(trainer.estimated_stepping_batches)
        self.progress.update(self.task, total=total, completed=trainer.global_step)
        self.progress.start()
        self.write(f"{self.title}: from epoch {self.done + 1} to {trainer.max_epochs}")

    def write(self, text: str) -> None:
        """Appends a line with the time to train.log."""
        with self.folder.log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.progress.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, epochs, best = trainer.current_epoch + 1, trainer.max_epochs or 1, self.folder.best
        scores = f"epoch {epoch}/{epochs}"
        # Else the last Dice is an earlier epoch's.
        validated = epoch % (trainer.check_val_every_n_epoch or 1) == 0
        for name in ("train/loss", "val/dice")[: 1 + validated]:
            if name in trainer.callback_metrics:
                scores += f"  {name.partition('/')[2]} {float(trainer.callback_metrics[name]):.3f}"
        self.progress.update(self.task, scores=scores)
        self.write(scores)
        if not self.console.is_terminal and (epoch % max(1, epochs // 10) == 0 or epoch == epochs):
            self.console.print(f"{self.title}: {scores}", highlight=False)
        state = {
            "epoch": epoch,
            "epochs": epochs,
            "seconds": (time.monotonic() - self.started) / (epoch - self.done),
            "best": validation_scores(best)["val/dice"] if best.exists() else None,
        }
        write_json(state, self.folder.progress)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.progress.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.progress.stop()  # gives the terminal back before the error is shown
        self.write(f"ended by {type(exception).__name__}: {' '.join(str(exception).split())}")


class Throughput(L.Callback):
    """Logs after each epoch:

    - `train/samples_per_s` of its training, of all processes together;
    - `epoch/seconds`, validation included;
    - `memory/peak_mib` of this process so far, and `gpu/peak_mib` of tensors on the GPU.

    Lightning's ThroughputMonitor would wait for the GPU after every step, and log a row for each window.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start, self.samples = time.perf_counter(), 0
        self.end = self.start
        reset_gpu_peak(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        _, batch, _ = step
        self.samples += len(batch["image"])
        self.end = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        samples = self.samples * trainer.world_size
        measured = {"train/samples_per_s": samples / (self.end - self.start), "memory/peak_mib": peak_mib()}
        measured["epoch/seconds"] = time.perf_counter() - self.start
        if (peak := gpu_peak_mib(pl_module.device)) is not None:
            measured["gpu/peak_mib"] = peak
        pl_module.log_dict(measured, logger=False)


class GateWeights(L.Callback):
    """Logs the weights of a network's gate after each epoch, as `gate/CHANNEL`; nothing without a gate.

    They are the network's own, also where their moving average is validated.
    """

    def __init__(self, channels: Sequence[str]) -> None:
        self.channels = channels

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for gate in (module for module in pl_module.modules() if isinstance(module, ChannelGate)):
            weights = gate.weights.detach()
            named = {f"gate/{name}": w for name, w in zip(self.channels, weights, strict=True)}
            pl_module.log_dict(named, logger=False)


class NonFiniteGuard(L.Callback):
    """Ends a training when the loss is NaN or infinite.

    A step's loss is looked at after the next step, so that no step waits for the GPU.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.step: tuple[Tensor, list[str], int] | None = None  # loss, cases and number of the newest

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        outputs, batch, _ = step
        self.check(trainer)
        self.step = (outputs["loss"], list(batch["case_id"]), trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the last step, before the epoch's checkpoint is saved."""
        self.check(trainer)
        self.step = None

    def check(self, trainer: L.Trainer) -> None:
        """Ends the training where the remembered loss is not finite; rank 0 raises the error."""
        if self.step is None:
            return
        loss, cases, number = self.step
        if trainer.strategy.reduce_boolean_decision(bool(loss.isfinite()), all=True):
            return
        if trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, cases)
            cases = [case_id for batch in found for case_id in batch]
        if not trainer.is_global_zero:
            raise SystemExit(0)
        raise HnsegError(
            f"{self.run}: loss {float(loss):.3g} in step {number} (epoch {trainer.current_epoch + 1}) on "
            f"{few(sorted(set(cases)))}; look at these cases, or train anew with a lower optimizer.step.lr "
            "(another name=, or overwrite=true)"
        )


class SigtermStop(L.Callback):
    """Ends a training at once on SIGTERM; the checkpoints on disk are whole.

    Lightning's own handler broadcasts the signal to the other processes in the middle of a step.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces Lightning's handler, which it has installed by now and removes at the end."""

        def stop(number: int, frame: Any) -> None:
            raise SIGTERMException

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)
