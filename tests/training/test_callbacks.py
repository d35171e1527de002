"""A loss that becomes NaN ends a training with the names of its cases; and the speed that a training logs."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from members import TINY
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader

from hnseg.errors import HnsegError
from hnseg.models.losses import DeepSupervision, DiceCELoss
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import build
from hnseg.training import callbacks
from hnseg.training.callbacks import NonFiniteGuard, Throughput

NETWORK = {"in_channels": 2, "out_channels": 3, **TINY["plainconv"]}


def train(trainer: L.Trainer, spoiled: int, batch: int = 2) -> None:
    """Six samples, of which one is infinite."""
    torch.manual_seed(0)
    module = SegmentationModule(
        build(**NETWORK),
        DeepSupervision(DiceCELoss()),
        lambda network, image: network(image),
        partial(SGD, lr=0.01),
        partial(PolynomialLR, total_iters=4),
        classes=("GTVp", "GTVn"),
        spacing=(1.0, 1.0, 1.0),
        card={"name": "fine", "network": NETWORK},
    )
    samples = [
        {"image": torch.randn(2, 8, 8, 8), "label": torch.randint(3, (8, 8, 8)), "case_id": f"A-{number}"}
        for number in range(6)
    ]
    samples[spoiled]["image"][0, 4, 4, 4] = torch.inf
    trainer.fit(module, DataLoader(samples, batch_size=batch))


@pytest.mark.parametrize(
    ("spoiled", "step", "cases"), [(1, 1, "A-0, A-1"), (3, 2, "A-2, A-3"), (5, 3, "A-4, A-5")]
)
def test_a_loss_that_is_nan_names_the_batch(make_trainer, spoiled, step, cases):
    trainer = make_trainer(1, NonFiniteGuard(Path("runs")), gradient_clip_val=12.0)
    with pytest.raises(HnsegError, match=rf"runs: loss nan in step {step} \(epoch 1\) on {cases}; .*lr"):
        train(trainer, spoiled)


def test_of_a_batch_in_parts_the_part_is_named(make_trainer):
    with pytest.raises(HnsegError, match=r"on A-2;"):
        train(make_trainer(1, NonFiniteGuard(Path("runs")), accumulate_grad_batches=3), 2, batch=1)


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
        return SGD(self.parameters(), lr=0.1)


def test_samples_a_second_do_not_count_validation(make_trainer, monkeypatch):
    module, trainer = Timed(), make_trainer(2, Throughput())
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: module.now))
    data = DataLoader([{"image": torch.ones(1)}] * 6, batch_size=2)
    trainer.fit(module, data, data)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert measured["train/samples_per_s"] == pytest.approx(2 / 4)
    assert measured["memory/peak_mib"] > 100  # Python with PyTorch
    assert "gpu/peak_mib" not in measured
