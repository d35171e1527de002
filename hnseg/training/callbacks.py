"""What watches a training: progress, throughput, input gates, and a loss that is no number."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from hnseg.devices import gpu_peak_mib, peak_mib, reset_gpu_peak
from hnseg.errors import HnsegError, few
from hnseg.files import replacing
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import ChannelGate
from hnseg.training.checkpoints import validation_scores
from hnseg.training.team import ALONE, Team


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


# A step in its order. `wait` is what passes between two steps: the next batch is awaited and moved to the
# device, and what was logged is noted.
PARTS = ("wait", "forward", "backward", "update")


class StepClock(L.Callback):
    """Seconds of each part of the steps since `reset`.

    On a GPU the marks are events in its own queue, read when somebody asks: no step waits for them, and
    `wait` is how long the GPU has nothing to do.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all steps."""
        self.steps = self.samples = 0
        self.marks: list[tuple[str, Any]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first batch is waited for from here on."""
        self._mark("", pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self._mark("wait", pl_module)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Any) -> None:
        """Network and loss are through."""
        self._mark("forward", pl_module)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The gradients are there."""
        self._mark("backward", pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        """The weights are updated."""
        _, batch, _ = step
        self._mark("update", pl_module)
        self.steps += 1
        self.samples += len(batch["image"])

    def seconds(self) -> dict[str, float]:
        """Of each part, over all steps; waits for a GPU to come to the last mark."""
        total = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            if part:
                total[part] += _between(before, after)
        return total

    def _mark(self, part: str, module: L.LightningModule) -> None:
        if module.device.type != "cuda":
            self.marks.append((part, perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((part, event))


def _between(before: Any, after: Any) -> float:
    if isinstance(after, float):
        return after - before
    after.synchronize()
    return before.elapsed_time(after) / 1000


class Throughput(StepClock):
    """Logs after each epoch's training, without its validation:

    - `train/samples_per_s`, and `train/waiting`, the share of the time without a batch to work on;
    - `step_s/forward`, `/backward`, `/update` and `/wait`, seconds of a step;
    - `memory/peak_mib` of the training process so far, and `gpu/peak_mib` of tensors on the GPU.

    Of several processes, samples are those of all, times and memory the logging one's. W&B itself samples
    the GPU's use.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins with the epoch."""
        self.reset()
        reset_gpu_peak(pl_module.device)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the epoch."""
        seconds = self.seconds()
        total = sum(seconds.values())
        measured = {f"step_s/{part}": spent / self.steps for part, spent in seconds.items()}
        samples = self.samples * trainer.world_size  # all processes take as many
        measured |= {"train/samples_per_s": samples / total, "train/waiting": seconds["wait"] / total}
        measured["memory/peak_mib"] = peak_mib()
        if (peak := gpu_peak_mib(pl_module.device)) is not None:
            measured["gpu/peak_mib"] = peak
        pl_module.log_dict(measured)


class GateWeights(L.Callback):
    """Logs the weights of a network's gate after each epoch, as `gate/CHANNEL`; nothing without a gate.

    They are the network's own, also where their moving average is validated.

    Args:
        channels: Names of the input channels.
    """

    def __init__(self, channels: Sequence[str]) -> None:
        self.channels = channels

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the epoch's."""
        for gate in (module for module in pl_module.modules() if isinstance(module, ChannelGate)):
            weights = gate.weights.detach()
            pl_module.log_dict({f"gate/{name}": w for name, w in zip(self.channels, weights, strict=True)})


_DELAY = 2  # steps that a GPU may be ahead of what is known of them
_GROWN = 2.0


class _Step(NamedTuple):
    """What was trained in one step, and whether its numbers were finite, as soon as `known`."""

    number: int
    batches: list[dict[str, Any]]
    finite: Tensor
    known: torch.cuda.Event | None
    loss: Tensor
    norm: Tensor


class NumberGuard(L.Callback):
    """Ends a training when the loss or the gradients' norm is NaN or infinite.

    On the processor that is before the weights are updated. A GPU is not waited for: there it is known a
    step or two later. float16's scaler skips steps with infinite gradients by itself, so that there the loss
    alone is looked at.

    A training whose mean loss over an epoch is more than twice its first epoch's is told to diverge, once.

    Args:
        file: Where a step that failed is kept, for `torch.load`: `batches`, `weights` (of the network),
            `card`, `loss`, `norm`, `step`, `epoch`.
        team: Of this process; all of it stops, and the batches are those of all.
    """

    def __init__(self, file: Path, team: Team = ALONE) -> None:
        self.file, self.team = file, team
        self.batches: list[dict[str, Any]] = []
        self.pending: deque[_Step] = deque()
        self.first: float | None = None
        self.told = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Asks the module for its numbers."""
        assert isinstance(pl_module, SegmentationModule)
        self.module = pl_module
        pl_module.watch = self.look
        self.scaled = trainer.precision == "16-mixed"

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, _: int
    ) -> None:
        """Remembers a batch until its update."""
        self.batches.append(batch)

    def look(self, loss: Tensor, norm: Tensor) -> None:
        """Looks at the numbers of an update.

        Args:
            loss: Of the last part of the batch.
            norm: Of all gradients, before clipping.

        Raises:
            HnsegError: They are not finite.
        """
        if self.team.size > 1:  # the gradients are the same for all by now; no number is read here either
            loss = loss.clone()
            torch.distributed.all_reduce(loss)
            loss /= self.team.size
        finite = loss.isfinite() if self.scaled else loss.isfinite() & norm.isfinite()
        known = None
        if finite.is_cuda:
            finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            known = torch.cuda.Event()
            known.record()
        step = _Step(self.module.trainer.global_step, self.batches, finite, known, loss, norm)
        self.pending.append(step)
        self.batches = []
        self._settle(_DELAY)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Settles what is open before the epoch is saved, and tells a loss that grows."""
        self._settle(0)
        loss = float(trainer.callback_metrics["train/loss"])
        if self.first is None:
            self.first = loss
        elif loss > _GROWN * self.first and not self.told and self.team.leads:
            self.told = True
            rate, epoch = trainer.optimizers[0].param_groups[0]["lr"], trainer.current_epoch + 1
            print(
                f"{self.file.parent}: loss {loss:.3g} in epoch {epoch}, {self.first:.3g} in the first: the "
                f"training diverges; is the learning rate of {rate:.2g} too high?",
                file=sys.stderr,
            )

    def _settle(self, delay: int) -> None:
        """Looks at all steps but the newest `delay`, and at those the GPU is through with anyway.

        A team's GPUs get through at different times: there all wait for the same step, or one would stop
        while the others went into the next.
        """
        while self.pending:
            step = self.pending[0]
            if step.known is not None:
                if len(self.pending) <= delay and (self.team.size > 1 or not step.known.query()):
                    return
                step.known.synchronize()
            self.pending.popleft()
            if not step.finite:
                self._stop(step)

    def _stop(self, step: _Step) -> None:
        module, epoch = self.module, self.module.trainer.current_epoch
        loss, norm = float(step.loss), float(step.norm)
        batches = [batch for one in self.team.gather(_on_cpu(step.batches)) for batch in one]
        kept: dict[str, Any] = {"batches": batches, "card": module.card, "step": step.number}
        kept |= {"weights": module.network.state_dict(), "loss": loss, "norm": norm, "epoch": epoch}
        self.team.share(lambda: self._keep(kept))
        cases = sorted({case_id for batch in batches for case_id in batch["case_id"]})
        raise HnsegError(
            f"{self.file.parent}: loss {loss:.3g}, norm of the gradients {norm:.3g} in step {step.number} "
            f"(epoch {epoch + 1}) on {few(cases)}; {self.file} keeps batch and weights. Look at these cases, "
            "or train anew with a lower optimizer.step.lr (another name=, or overwrite=true)"
        )

    def _keep(self, step: dict[str, Any]) -> None:
        with replacing(self.file) as temporary:
            torch.save(step, temporary)

    def state_dict(self) -> dict[str, Any]:
        """The first epoch's loss, for a training that is taken up again."""
        return {"first": self.first, "told": self.told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it from a checkpoint."""
        self.first, self.told = state_dict["first"], state_dict["told"]


def _on_cpu(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where other processes can take them over."""
    return [move_data_to_device(batch, "cpu") for batch in batches]
