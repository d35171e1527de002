"""A training whose numbers are none stops, and what it stopped on can be looked at."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from members import TINY
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader

from hnseg.errors import HnsegError
from hnseg.models.losses import DeepSupervision, DiceCELoss
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import build
from hnseg.processes import quiet
from hnseg.training.callbacks import NumberGuard

NETWORK = {"in_channels": 2, "out_channels": 3, **TINY["plainconv"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "diverged.pt"


def make_module() -> SegmentationModule:
    torch.manual_seed(0)
    return SegmentationModule(
        build(**NETWORK),
        DeepSupervision(DiceCELoss()),
        lambda network, image: network(image),
        partial(SGD, lr=0.01),
        partial(PolynomialLR, total_iters=4),
        classes=("GTVp", "GTVn"),
        spacing=(1.0, 1.0, 1.0),
        card={"name": "fine", "network": NETWORK},
    )


def train(
    file: Path, module: SegmentationModule, samples: list[dict[str, Any]], batch: int = 2, **settings: Any
) -> L.Trainer:
    quiet()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[NumberGuard(file)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, **settings},
    )
    trainer.fit(module, DataLoader(samples, batch_size=batch))
    return trainer


def samples(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(2, 8, 8, 8, generator=generator),
            "label": torch.randint(3, (8, 8, 8), generator=generator),
            "case_id": f"A-{number}",
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("clip", [None, 12.0])
def test_a_loss_that_is_none_names_the_batch_and_keeps_it(file, clip):
    data, module = samples(6), make_module()
    data[3]["image"][0, 4, 4, 4] = torch.inf
    with pytest.raises(HnsegError, match=r"loss nan.* in step 1 \(epoch 1\) on A-2, A-3; .*keeps"):
        train(file, module, data, gradient_clip_val=clip)
    kept = torch.load(file, weights_only=True)
    assert (kept["step"], kept["epoch"]) == (1, 0)
    (batch,) = kept["batches"]
    assert batch["case_id"] == ["A-2", "A-3"]
    network = build(**kept["card"]["network"]).train()
    network.load_state_dict(kept["weights"])
    assert all(weight.isfinite().all() for weight in kept["weights"].values())  # those from before the step
    loss = DeepSupervision(DiceCELoss())
    assert not loss(network(batch["image"]), batch["label"]).isfinite()
    assert loss(network(batch["image"][:1]), batch["label"][:1]).isfinite()


def test_gradients_that_are_none_stop_it_before_they_reach_the_weights(file):
    module, steps = make_module(), []

    def spoil(gradient: Tensor) -> Tensor:
        steps.append(gradient)
        return gradient * torch.nan if len(steps) == 3 else gradient

    next(module.network.parameters()).register_hook(spoil)
    with pytest.raises(HnsegError, match=r"loss \d\.\d+, norm of the gradients nan in step 2"):
        train(file, module, samples(8))
    assert all(weight.isfinite().all() for weight in module.network.state_dict().values())


def test_all_parts_of_a_batch_are_named(file):
    data = samples(4)
    data[2]["image"][:] = torch.nan
    with pytest.raises(HnsegError, match=r"in step 0 \(epoch 1\) on A-0, A-1, A-2, A-3;"):
        train(file, make_module(), data, batch=1, accumulate_grad_batches=4)
    assert len(torch.load(file, weights_only=True)["batches"]) == 4


def test_a_loss_that_grows_is_told_once(file, capsys, monkeypatch):
    factors = iter([1.0, 1.5, 2.5, 5.0])
    parts = DeepSupervision.parts

    def growing(self: DeepSupervision, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = parts(self, *arguments)
        return loss / loss.detach() * next(factors), terms

    monkeypatch.setattr(DeepSupervision, "parts", growing)
    train(file, make_module(), samples(2), max_epochs=4)
    (line,) = capsys.readouterr().err.splitlines()
    assert "loss 2.5 in epoch 3, 1 in the first: the training diverges; is the learning rate of 0.0" in line
    assert not file.exists()
