"""Learning rates of a whole training, against nnU-Net's trainer and Auto3DSeg's loop.

What is compared are the rates that Lightning really used, epoch by epoch.
"""

import pytest
import torch
from hydra.utils import instantiate
from jobs import job
from spoiled import must_fail
from torch import Tensor, nn
from trainings import Trainers, auto3dseg_optimiser, nnunet_trainer, train


class FirstVoxel(nn.Module):
    """A loss for networks that only stand in for one."""

    def parts(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return logits.flatten()[0], {}


def curve(*overrides: str, change: str | None = None) -> list[float]:
    """The rate of each epoch of a whole training of the configuration, by a network of one weight."""
    batch = {"image": torch.ones(1, 1, 1, 1, 1), "label": torch.zeros(1, 1, 1, 1)}
    return train(job(*overrides, change=change), nn.Conv3d(1, 1, 1, bias=False), FirstVoxel(), [batch])


def nnunet_curve(nnunet: Trainers, epochs: int) -> list[float]:
    trainer = nnunet_trainer(nnunet, nn.Conv3d(1, 1, 1), epochs)
    rates = []
    for epoch in range(epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    return rates


def auto3dseg_curve(epochs: int) -> list[float]:
    """Its loop steps the schedule once, at the end of an epoch."""
    optimiser, schedule = auto3dseg_optimiser(nn.Conv3d(1, 1, 1), epochs)
    rates = []
    for _ in range(epochs):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


def assert_same_curve(ours: list[float], theirs: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=1e-12)


PAIRS = [("localiser", "plainconv", 500), ("coarse", "plainconv", 1000), ("fine", "resenc", 1000)]


@pytest.mark.parametrize(("stage", "model", "epochs"), PAIRS)
def test_rates_are_nnunet_s_over_a_whole_training(stage, model, epochs, nnunet):
    ours = curve(f"stage={stage}", f"model={model}")
    assert len(ours) == epochs
    assert_same_curve(ours, nnunet_curve(nnunet, epochs))


def test_rates_are_auto3dseg_s_over_a_whole_training():
    ours = curve("stage=fine", "model=segresnet")
    assert len(ours) == 300
    assert_same_curve(ours, auto3dseg_curve(300))


NNUNET_TWINS = ["step.lr=0.011", "schedule.power=1.0", "schedule.total_iters=31"]
AUTO3DSEG_TWINS = ["step.lr=1e-4", "schedule.warmup_steps=2", "schedule.warmup_multiplier=0.0"]


@pytest.mark.parametrize(
    ("model", "twin"),
    [("plainconv", twin) for twin in NNUNET_TWINS] + [("segresnet", twin) for twin in AUTO3DSEG_TWINS],
)
def test_a_spoiled_rate_is_not_its_maker_s(model, twin, nnunet):
    short = ["stage=coarse", f"model={model}", "training.epochs=30"]
    theirs = nnunet_curve(nnunet, 30) if model == "plainconv" else auto3dseg_curve(30)
    assert_same_curve(curve(*short), theirs)
    with must_fail():
        assert_same_curve(curve(*short, change=f"optimizer.{twin}"), theirs)


@pytest.mark.parametrize("model", ["plainconv", "segresnet"])
def test_the_optimiser_s_settings_are_its_maker_s(model, nnunet):
    network = nn.Conv3d(1, 1, 1)
    ours = instantiate(job("stage=coarse", f"model={model}").optimizer.step)(network.parameters())
    theirs, _ = auto3dseg_optimiser(network, 300)
    if model == "plainconv":
        theirs = nnunet_trainer(nnunet, network, 1000).optimizer
    assert type(ours) is type(theirs)
    assert ours.defaults == theirs.defaults
    assert len(ours.param_groups) == 1  # biases and norms decay as all weights do
