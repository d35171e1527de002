"""The weights that a few epochs leave, against nnU-Net's own steps and Auto3DSeg's: loss, clip, optimiser."""

from copy import deepcopy

import pytest
import torch
from hydra.utils import instantiate
from jobs import job
from monai.losses import DeepSupervisionLoss, DiceCELoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from spoiled import must_fail
from torch import nn
from trainings import Batches, auto3dseg_optimiser, nnunet_trainer, train

from hnseg.models.losses import nearest
from hnseg.models.nets import build

# Five depths under the trainer's loss, on volumes that need only two of the strides.
SMALL = {"features": [8] * 6, "strides": [1, 2, 2, 1, 1, 1]}


def batches() -> Batches:
    """Two batches of images (2, 2, z, y, x) and labels (2, z, y, x)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, 2, 2, 16, 16, 16), generator=generator)
    labels = torch.randint(0, 3, (2, 2, 16, 16, 16), generator=generator)
    return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]


def nnunet_steps(network: nn.Module, trainer: nnUNetTrainer) -> None:
    """A training by nnU-Net's own epochs and steps, its loss and clip among them."""
    trainer.loss = trainer._build_loss()
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for batch in batches():
            depths = network(batch["image"])
            target = [nearest(batch["label"], logits.shape[2:])[:, None] for logits in depths]
            trainer.train_step({"data": batch["image"], "target": target})


def auto3dseg_steps(network: nn.Module, epochs: int) -> None:
    """Auto3DSeg's loop, without mixed precision: no clip."""
    optimiser, schedule = auto3dseg_optimiser(network, epochs)
    loss = DeepSupervisionLoss(
        DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5)
    )
    for _ in range(epochs):
        for batch in batches():
            optimiser.zero_grad()
            loss(network(batch["image"]), batch["label"][:, None].float()).backward()
            optimiser.step()
        schedule.step()


def steps(start: nn.Module, *overrides: str, change: str | None = None) -> nn.Module:
    """A training of our own from a copy of the same weights."""
    cfg, network = job(*overrides, change=change), deepcopy(start)
    train(cfg, network, instantiate(cfg.loss), batches())
    return network


def assert_same_weights(ours: nn.Module, theirs: nn.Module, start: nn.Module) -> None:
    """Compares the way that all weights together went from the start; rounding grows with every step."""
    before, here, there = (torch.cat([p.flatten() for p in n.parameters()]) for n in (start, ours, theirs))
    apart = (torch.dist(here, there) / torch.dist(there, before)).item()
    assert apart < 1e-2, f"the ways are not close: {apart:.2g} of their length apart"


def small(model: str) -> nn.Module:
    torch.manual_seed(0)
    if model == "segresnet":
        shape = {"init_filters": 8, "blocks_down": [1, 1, 1, 1], "depths": 4}
        return build("hnseg.models.nets.SegResNetDS", 2, 3, **shape)
    network = build("hnseg.models.nets.PlainConvUNet", 2, 3, **SMALL)
    for layer in network.network.decoder.seg_layers:
        layer.weight.data.mul_(30)  # gradients long enough for the clip of 12 to bite
    return network


TWINS = {
    "plainconv": ["clip=null", "clip=6.0", "step.momentum=0.95", "step.nesterov=false", "schedule.power=1.0"],
    "segresnet": ["clip=0.1", "step.lr=2.2e-4", "schedule.warmup_multiplier=0.2"],
}
OVERRIDES = {"plainconv": ["stage=coarse", "loss=nnunet"], "segresnet": ["stage=fine"]}


@pytest.mark.parametrize("model", TWINS)
def test_steps_leave_the_weights_that_the_maker_s_leave(model, nnunet):
    start = small(model)
    theirs, overrides = deepcopy(start).train(), [f"model={model}", "training.epochs=3", *OVERRIDES[model]]
    if model == "plainconv":
        nnunet_steps(theirs, nnunet_trainer(nnunet, theirs, 3))
    else:
        auto3dseg_steps(theirs, 3)
    assert_same_weights(steps(start, *overrides), theirs, start)
    for twin in TWINS[model]:
        with must_fail():
            assert_same_weights(steps(start, *overrides, change=f"optimizer.{twin}"), theirs, start)
