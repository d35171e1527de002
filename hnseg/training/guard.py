"""Stops a training whose numbers are none any more, and says what it was trained on."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from hnseg.errors import HnsegError, few
from hnseg.files import replacing
from hnseg.models.module import SegmentationModule
from hnseg.training.team import ALONE, Team

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
