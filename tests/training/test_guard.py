"""A training whose loss becomes NaN stops and names the cases."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from members import TINY
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader

from hnseg.errors import HnsegError
from hnseg.models.losses import DeepSupervision, DiceCELoss
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import build
from hnseg.processes import silence_libraries
from hnseg.training.callbacks import NonFiniteGuard

NETWORK = {"in_channels": 2, "out_channels": 3, **TINY["plainconv"]}


def train(spoiled: int, batch: int = 2, **settings: Any) -> None:
    """Six samples, of which one is infinite."""
    silence_libraries()
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
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[NonFiniteGuard(Path("runs"))],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        **settings,
    )
    trainer.fit(module, DataLoader(samples, batch_size=batch))


@pytest.mark.parametrize(
    ("spoiled", "step", "cases"), [(1, 1, "A-0, A-1"), (3, 2, "A-2, A-3"), (5, 3, "A-4, A-5")]
)
def test_a_loss_that_is_nan_names_the_batch(spoiled, step, cases):
    with pytest.raises(HnsegError, match=rf"runs: loss nan in step {step} \(epoch 1\) on {cases}; .*lr"):
        train(spoiled, gradient_clip_val=12.0)


def test_of_a_batch_in_parts_the_part_is_named():
    with pytest.raises(HnsegError, match=r"on A-2;"):
        train(2, batch=1, accumulate_grad_batches=3)
