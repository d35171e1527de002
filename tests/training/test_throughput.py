"""What a training tells of its speed, with a clock and a network whose times are known."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hnseg.processes import quiet
from hnseg.training import callbacks
from hnseg.training.callbacks import Throughput

# What each part takes, by the clock that only runs when it is told to.
SPENT = {"wait": 3.0, "forward": 1.0, "backward": 2.0, "update": 0.5}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(L.LightningModule):
    """Every part of a step takes its time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer, self.clock = nn.Linear(1, 1), clock

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.clock.now += SPENT["forward"]
        return self.layer(batch["image"]).mean()

    def backward(self, loss: torch.Tensor) -> None:
        self.clock.now += SPENT["backward"]
        loss.backward()

    def optimizer_step(self, *arguments: Any) -> None:
        super().optimizer_step(*arguments)
        self.clock.now += SPENT["update"]

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self.clock.now += 100.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_each_part_of_a_step_has_its_seconds_and_validation_none(monkeypatch):
    quiet()
    clock = Clock()
    monkeypatch.setattr(callbacks, "perf_counter", clock)

    class Slow(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> dict[str, Any]:
            clock.now += SPENT["wait"] / 2  # two samples a batch
            return {"image": torch.ones(1)}

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
    data = DataLoader(Slow(), batch_size=2)
    trainer.fit(Timed(clock), data, DataLoader(Slow(), batch_size=2))
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for part, seconds in SPENT.items():
        assert measured[f"step_s/{part}"] == pytest.approx(seconds), part
    assert measured["train/samples_per_s"] == pytest.approx(2 / sum(SPENT.values()))
    assert measured["train/waiting"] == pytest.approx(SPENT["wait"] / sum(SPENT.values()))
    assert measured["memory/peak_mib"] > 100  # Python with PyTorch
    assert "gpu/peak_mib" not in measured
