"""How fast a training goes, and how much of the GPU's memory it takes."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import lightning as L
import torch


class Throughput(L.Callback):
    """Logs samples a second of each epoch's training, and the GPU's peak memory in GB where there is one.

    The clock stands still while validating. Nothing waits for the GPU: over an epoch its queue does not
    count. W&B itself samples the GPU's use.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self.samples, self.seconds, self.since = 0, 0.0, perf_counter()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        """Counts the samples of a batch."""
        _, batch, _ = step
        self.samples += len(batch["image"])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock."""
        self.seconds += perf_counter() - self.since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts it again."""
        self.since = perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the epoch."""
        seconds = self.seconds + perf_counter() - self.since
        pl_module.log("train/samples_per_s", self.samples / seconds)
        if pl_module.device.type == "cuda":
            pl_module.log("gpu/peak_memory_gb", torch.cuda.max_memory_allocated(pl_module.device) / 1e9)
