"""The configured losses and their gradients against nnU-Net's, Auto3DSeg's and the paper's equations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from hydra.utils import instantiate
from jobs import job
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss
from omegaconf import OmegaConf
from spoiled import must_fail
from torch import Tensor

SIDES = (16, 16, 32)  # (z, y, x) of the finest depth; the lowest of five is a single voxel thick
# How Auto3DSeg's segresnet template sets MONAI's loss.
AUTO3DSEG = {
    "_target_": "DiceCELoss",
    "include_background": True,
    "squared_pred": True,
    "smooth_nr": 0,
    "smooth_dr": 1.0e-5,
    "softmax": True,
    "sigmoid": False,
    "to_onehot_y": True,
}
# Labels of two samples: what each class's share of the voxels may be like.
KINDS = ("random", "last class absent", "absent and hardly predicted", "one voxel", "background alone")
# The paper's equation has no smoothing.
EXACT = {"smooth_top": 0.0, "smooth_bottom": 0.0}
Loss = Callable[[list[Tensor], Tensor], Tensor]


def case(kind: str, depths: int, classes: int) -> tuple[list[Tensor], Tensor]:
    """Logits (B, K, z, y, x) of all depths, finest first, that want gradients, and labels (B, z, y, x)."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    sides = [[side // 2**k for side in SIDES] for k in range(depths)]
    logits = [torch.randn((2, classes, *s), generator=generator, dtype=torch.float64) * 2 for s in sides]
    labels = torch.randint(0, classes, (2, *SIDES), generator=generator)
    if "absent" in kind:
        labels[labels == classes - 1] = 0
    if "hardly" in kind:  # a sum of probabilities no larger than the smoothing
        for one in logits:
            one[:, -1] -= 20
    if kind in ("one voxel", "background alone"):
        labels[:] = 0
    if kind == "one voxel":
        labels[:, 5, 6, 7] = 1
        labels[:, 1, 2, 3] = classes - 1
    return [one.requires_grad_() for one in logits], labels


def gradients(loss: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
    """By depth; a depth of weight 0 is not even looked at."""
    found = torch.autograd.grad(loss, logits, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(logits, found, strict=True)]


def assert_same(
    ours: Loss, theirs: Loss, depths: int, classes: int, *, constant: float = 0.0, rtol: float = 1e-4
) -> None:
    """Loss, up to a constant, and the gradient at every depth, on all kinds of labels.

    nnU-Net and MONAI sum in float32; a gradient is of the order of one over the number of voxels.
    """
    for kind in KINDS:
        logits, labels = case(kind, depths, classes)
        value, expected = ours(logits, labels), theirs(logits, labels)
        torch.testing.assert_close(value, expected + constant, rtol=rtol, atol=1e-6, check_dtype=False)
        torch.testing.assert_close(
            gradients(value, logits), gradients(expected, logits), rtol=rtol, atol=1e-8
        )


def configured(name: str, **changes: Any) -> Loss:
    """The loss that a training with loss=`name` takes, with some settings changed."""
    return instantiate(OmegaConf.merge(job(f"loss={name}").loss, changes))


@pytest.fixture
def nnunet_loss(nnunet: Callable[[str], Any]) -> Callable[[str], Loss]:
    """The loss of nnU-Net's own trainer, on targets that its own augmentation made coarser."""

    def make(stage: str) -> Loss:
        trainer = nnunet(stage)
        loss, scales = trainer._build_loss(), trainer._get_deep_supervision_scales()
        downsample = DownsampleSegForDSTransform(scales)

        def call(logits: list[Tensor], labels: Tensor) -> Tensor:
            samples = [downsample(segmentation=one[None])["segmentation"] for one in labels]
            return loss(logits, [torch.stack(depth) for depth in zip(*samples, strict=True)])

        return call

    return make


def auto3dseg_loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    inner = ConfigParser(AUTO3DSEG).get_parsed_content()
    return DeepSupervisionLoss(inner)(logits, labels[:, None].double())


def paper_loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Section 2.4 of the paper, sample by sample, under nnU-Net's weights, on nearest-neighbour targets."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, x in zip((8 / 15, 4 / 15, 2 / 15, 1 / 15), logits[:4], strict=True):
        p = x.exp() / x.exp().sum(1, keepdim=True)
        # The voxel that holds the middle of a coarser one, or lies above it.
        at = [
            ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(p.shape[2:], SIDES, strict=True)
        ]
        coarse = labels[:, at[0]][:, :, at[1]][:, :, :, at[2]]
        g = torch.stack([coarse == c for c in range(p.shape[1])], 1).double()
        space = (2, 3, 4)
        dice = 2 * (p * g).sum(space) / ((p**2).sum(space) + (g**2).sum(space))
        entropy = -(g * p.log()).sum() / coarse.numel()
        total = total + weight * (1 - dice.mean() + entropy)
    return total


@pytest.mark.parametrize(("stage", "classes"), [("localiser", 2), ("coarse", 3), ("fine", 3)])
def test_loss_nnunet_is_its_trainer_s_but_for_a_constant(stage, classes, nnunet_loss):
    # nnU-Net's Dice term is -Dice, ours 1 - Dice; the weights of the depths sum to 1.
    assert_same(configured("nnunet"), nnunet_loss(stage), 5, classes, constant=1.0)


@pytest.mark.parametrize("classes", [2, 3])
def test_loss_auto3dseg_is_monai_s_as_auto3dseg_sets_it(classes):
    assert_same(configured("auto3dseg"), auto3dseg_loss, 4, classes)


@pytest.mark.parametrize("classes", [2, 3])
def test_loss_dice_ce_is_the_paper_s_equation(classes):
    assert_same(configured("dice_ce", loss=EXACT), paper_loss, 5, classes, rtol=1e-9)


def test_smoothing_counts_an_absent_and_unpredicted_class_as_found():
    # On purpose: the paper's fraction is 0 over nearly 0 there; nnU-Net's smoothing of 1e-5 makes it 1.
    logits, labels = case("absent and hardly predicted", 5, 3)
    smooth, exact = configured("dice_ce")(logits, labels), paper_loss(logits, labels)
    torch.testing.assert_close(exact - smooth, torch.tensor(1 / 3, dtype=torch.float64), rtol=1e-3, atol=0)
    for kind in ("random", "one voxel"):  # it does not show elsewhere
        logits, labels = case(kind, 5, 3)
        torch.testing.assert_close(configured("dice_ce")(logits, labels), paper_loss(logits, labels))


SPOILED = {
    "nnunet": [{"squared": True}, {"background": True}, {"smooth_top": 0.0}, {"smooth_bottom": 2e-5}],
    "auto3dseg": [{"squared": False}, {"background": False}, {"smooth_top": 1e-5}, {"smooth_bottom": 0.1}],
    "dice_ce": [{"squared": False}, {"background": False}, {"smooth_bottom": 1e-3}],
}
TWINS = [(name, {"loss": change}) for name, changes in SPOILED.items() for change in changes]


@pytest.mark.parametrize(
    ("name", "twin"), [*TWINS, ("nnunet", {"weights": "monai"}), ("auto3dseg", {"weights": "nnunet"})]
)
def test_a_spoiled_loss_is_no_longer_its_original(name, twin, nnunet_loss):
    exact = EXACT if name == "dice_ce" else {}
    ours = configured(name, **OmegaConf.merge({"loss": exact}, twin))
    with must_fail():
        if name == "nnunet":
            assert_same(ours, nnunet_loss("fine"), 5, 3, constant=1.0)
        elif name == "auto3dseg":
            assert_same(ours, auto3dseg_loss, 4, 3)
        else:
            assert_same(ours, paper_loss, 5, 3, rtol=1e-9)
