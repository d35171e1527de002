"""The samples a second that a training logs, with a clock that runs only in its steps."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hnseg.processes import silence_libraries
from hnseg.training import callbacks
from hnseg.training.callbacks import Throughput


class Timed(L.LightningModule):
    """A training step takes 4 seconds, a validation step 100."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.now = nn.Linear(1, 1), 0.0

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.now += 4.0
        return self.layer(batch["image"]).mean()

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self.now += 100.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_samples_a_second_do_not_count_validation(monkeypatch):
    silence_libraries()
    module = Timed()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: module.now))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=[Throughput()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = DataLoader([{"image": torch.ones(1)}] * 6, batch_size=2)
    trainer.fit(module, data, data)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert measured["train/samples_per_s"] == pytest.approx(2 / 4)
    assert measured["memory/peak_mib"] > 100  # Python with PyTorch
    assert "gpu/peak_mib" not in measured
