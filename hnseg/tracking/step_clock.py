"""Where the time of training steps goes."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L
import torch

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
