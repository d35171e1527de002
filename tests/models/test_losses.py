"""What the loss promises beside being its makers', which tests/parity shows."""

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from hnseg.models.losses import DeepSupervision, DiceCELoss

SHAPE = (6, 8, 10)


def case(classes: int = 3, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, K, z, y, x) in float64 that want gradients, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((batch, classes, *SHAPE), generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, classes, (batch, *SHAPE), generator=generator)
    return logits.requires_grad_(), labels


def test_a_voxel_worked_by_hand():
    # Two voxels, two classes, p(foreground) = 0.5 and 0.75; the truth is background, foreground.
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]], dtype=torch.float64).reshape(1, 2, 1, 1, 2)
    labels = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    background = 2 * 0.5 / (0.5**2 + 0.25**2 + 1)
    foreground = 2 * 0.75 / (0.5**2 + 0.75**2 + 1)
    expected = 1 - (background + foreground) / 2 - (np.log(0.5) + np.log(0.75)) / 2
    loss = DiceCELoss(smooth_top=0.0, smooth_bottom=0.0)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_the_slope():
    logits, labels = case()
    small = logits.detach()[:, :, :2, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DiceCELoss()(x, labels[:, :2, :2, :2]), small)


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 4.0]])
def test_samples_are_scored_alone_not_as_one_batch(weights):
    logits, labels = case()
    labels[0] = 0
    loss = DiceCELoss(class_weights=weights)
    together = loss(logits, labels).item()
    alone = np.mean([loss(logits[i : i + 1], labels[i : i + 1]).item() for i in range(2)])
    assert together == pytest.approx(alone, rel=1e-9)
    wide_logits = logits.movedim(0, 2).reshape(1, 3, -1, *SHAPE[1:])  # batch Dice would be this
    wide = loss(wide_logits, labels.reshape(1, -1, *SHAPE[1:])).item()
    assert abs(together - wide) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(dtype):
    logits, labels = case()
    low = logits.detach().to(dtype)
    loss = DiceCELoss()(low, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, DiceCELoss()(low.double(), labels).float())


def test_logits_of_one_depth_need_no_list():
    logits, labels = case()
    for rule in ("nnunet", "monai"):
        loss = DeepSupervision(DiceCELoss(), weights=rule)
        torch.testing.assert_close(loss(logits, labels), DiceCELoss()(logits, labels))
        torch.testing.assert_close(loss([logits], labels), DiceCELoss()(logits, labels))


def test_a_loss_tells_its_terms_and_depths() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, n, n, n, requires_grad=True) for n in (8, 4, 2)]
    target = torch.randint(3, (2, 8, 8, 8))
    loss, parts = DeepSupervision(DiceCELoss()).parts(logits, target)
    assert set(parts) == {"dice_loss", "ce_loss", "loss_depth_0", "loss_depth_1"}  # the lowest has no weight
    # Halved by nearest neighbour, the voxel above the middle stands for two: weights 2/3 and 1/3.
    entropies = [F.cross_entropy(logits[0], target), F.cross_entropy(logits[1], target[:, 1::2, 1::2, 1::2])]
    torch.testing.assert_close(parts["ce_loss"], (2 * entropies[0] + entropies[1]).detach() / 3)
    torch.testing.assert_close(parts["dice_loss"] + parts["ce_loss"], loss.detach())
    torch.testing.assert_close((2 * parts["loss_depth_0"] + parts["loss_depth_1"]) / 3, loss.detach())
    assert not any(part.requires_grad for part in parts.values())


@pytest.mark.parametrize("background", [True, False])
def test_class_weights_are_monais_and_torchs(background: bool) -> None:
    logits, labels = case()
    weights = [0.5, 1.0, 3.0]
    ours = DiceCELoss(background=background, class_weights=weights).terms(logits, labels)
    told = torch.tensor(weights, dtype=torch.float64)
    samples = [F.cross_entropy(logits[[n]], labels[[n]], weight=told) for n in range(len(logits))]
    torch.testing.assert_close(ours["ce"], torch.stack(samples).mean())
    counted = told if background else told[1:]
    theirs = DiceLoss(
        softmax=True, squared_pred=True, include_background=background, to_onehot_y=True, weight=counted
    )
    # MONAI multiplies by the weights and divides by the number of classes, not by the sum of the weights.
    scale = len(counted) / counted.sum()
    torch.testing.assert_close(ours["dice"], theirs(logits, labels[:, None]) * scale)
    unweighted = DiceCELoss(background=background).terms(logits, labels)
    assert all(abs(unweighted[name] - ours[name]) > 1e-4 for name in ours)


def test_equal_class_weights_change_nothing() -> None:
    logits, labels = case()
    equal = DiceCELoss(class_weights=[2.0, 2.0, 2.0])
    torch.testing.assert_close(equal(logits, labels), DiceCELoss()(logits, labels))
    assert not equal.state_dict()  # checkpoints hold the network alone
