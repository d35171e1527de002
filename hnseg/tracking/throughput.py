"""How fast a training goes, where its time goes, and how much memory it takes."""

from __future__ import annotations

import lightning as L

from hnseg.hardware import gpu_peak_mib, peak_mib, reset_gpu_peak
from hnseg.tracking.step_clock import StepClock


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
