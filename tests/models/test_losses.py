"""Dice + cross-entropy by the paper's equations, and as nnU-Net and MONAI compute them, gradients too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from monai.losses import DeepSupervisionLoss
from monai.losses import DiceCELoss as MonaiDiceCELoss
from torch import Tensor
from torch.nn import functional as F

from hnseg.models.losses import DeepSupervision, DiceCELoss, nearest

CONF = Path(__file__).parents[2] / "conf"
SHAPE = (6, 8, 10)
# facts.md, section 1: how Auto3DSeg sets MONAI's loss.
AUTO3DSEG = {
    "include_background": True,
    "to_onehot_y": True,
    "softmax": True,
    "squared_pred": True,
    "smooth_nr": 0,
    "smooth_dr": 1e-5,
}


def case(classes: int = 3, batch: int = 2, seed: int = 0, absent: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (B, K, z, y, x) in float64 that want gradients, and labels; the last class absent if asked."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((batch, classes, *SHAPE), generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, classes - absent, (batch, *SHAPE), generator=generator)
    return logits.requires_grad_(), labels


def depths(seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Logits at four depths, finest first, for one target of 16³."""
    generator = torch.Generator().manual_seed(seed)
    sides = (16, 8, 4, 2)
    logits = [torch.randn((2, 3, n, n, n), generator=generator, dtype=torch.float64) for n in sides]
    return [x.requires_grad_() for x in logits], torch.randint(0, 3, (2, 16, 16, 16), generator=generator)


def equation(logits: Tensor, labels: Tensor) -> float:
    """The paper's section 2.4 in numpy, for each sample, averaged over samples."""
    x = logits.detach().numpy()
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    g = np.stack([labels.numpy() == c for c in range(x.shape[1])], axis=1).astype(float)
    space = (2, 3, 4)
    dice = 2 * (p * g).sum(space) / ((p**2).sum(space) + (g**2).sum(space))
    cross_entropy = -(g * np.log(p)).sum() / labels.numel()
    return 1 - dice.mean() + cross_entropy


def nnunet(logits: Tensor, labels: Tensor) -> Tensor:
    """nnU-Net's DC_and_CE_loss: minus its SoftDice (plain sums, no background, smooth 1e-5), plus entropy."""
    p = torch.softmax(logits, 1)
    g = torch.zeros_like(p).scatter_(1, labels[:, None], 1)
    p, g = p[:, 1:], g[:, 1:]
    intersect, sum_pred, sum_gt = ((t).sum((2, 3, 4)) for t in (p * g, p, g))
    dc = (2 * intersect + 1e-5) / torch.clip(sum_gt + sum_pred + 1e-5, 1e-8)
    return F.cross_entropy(logits, labels) - dc.mean()


def gradients(loss: Tensor, *logits: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, logits))


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_paper_s_equation(seed):
    logits, labels = case(seed=seed)
    exact = DiceCELoss(smooth_top=0.0, smooth_bottom=0.0)
    assert exact(logits, labels).item() == pytest.approx(equation(logits, labels), rel=1e-12)
    # The smoothing that training uses does not show.
    assert DiceCELoss()(logits, labels).item() == pytest.approx(equation(logits, labels), rel=1e-6)


def test_a_voxel_worked_by_hand():
    # Two voxels, two classes, p(foreground) = 0.5 and 0.75; the truth is background, foreground.
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]], dtype=torch.float64).reshape(1, 2, 1, 1, 2)
    labels = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    background = 2 * 0.5 / (0.5**2 + 0.25**2 + 1)
    foreground = 2 * 0.75 / (0.5**2 + 0.75**2 + 1)
    expected = 1 - (background + foreground) / 2 - (np.log(0.5) + np.log(0.75)) / 2
    loss = DiceCELoss(smooth_top=0.0, smooth_bottom=0.0)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_is_monai_s_as_auto3dseg_sets_it(classes, absent):
    logits, labels = case(classes, absent=absent)
    reference = MonaiDiceCELoss(**AUTO3DSEG)
    ours = DiceCELoss(smooth_top=0.0, smooth_bottom=1e-5)(logits, labels)
    theirs = reference(logits, labels[:, None])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, logits), gradients(theirs, logits))


@pytest.mark.parametrize("absent", [False, True])
def test_the_loss_is_nnunet_s_but_for_the_constant(absent):
    logits, labels = case(absent=absent)
    ours = DiceCELoss(squared=False, background=False)(logits, labels)
    theirs = nnunet(logits, labels)
    torch.testing.assert_close(ours, 1 + theirs)
    torch.testing.assert_close(gradients(ours, logits), gradients(theirs, logits))


def test_the_gradient_is_the_slope():
    logits, labels = case()
    small = logits.detach()[:, :, :2, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DiceCELoss()(x, labels[:, :2, :2, :2]), small)


@pytest.mark.parametrize(
    "spoiled",
    [{"squared": False}, {"background": False}, {"smooth_bottom": 100.0}, {"smooth_top": 100.0}],
)
def test_each_setting_matters(spoiled):
    # Twins that must fail the comparisons above, were they used in their place.
    logits, labels = case()
    right = DiceCELoss(smooth_top=0.0, smooth_bottom=0.0)(logits, labels)
    twin = DiceCELoss(**{"smooth_top": 0.0, "smooth_bottom": 0.0} | spoiled)(logits, labels)
    assert abs((twin - right).item()) > 1e-3


def test_samples_are_scored_alone_not_as_one_batch():
    logits, labels = case()
    labels[0] = 0
    loss = DiceCELoss()
    together = loss(logits, labels).item()
    alone = np.mean([loss(logits[i : i + 1], labels[i : i + 1]).item() for i in range(2)])
    assert together == pytest.approx(alone, rel=1e-9)
    wide_logits = logits.movedim(0, 2).reshape(1, 3, -1, *SHAPE[1:])  # batch Dice would be this
    wide = loss(wide_logits, labels.reshape(1, -1, *SHAPE[1:])).item()
    assert abs(together - wide) > 1e-3


def test_a_perfect_answer_costs_next_to_nothing():
    _, labels = case()
    logits = 50.0 * F.one_hot(labels, 3).movedim(-1, 1).double()
    assert DiceCELoss()(logits, labels).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_summed_in_float32(dtype):
    logits, labels = case()
    low = logits.detach().to(dtype)
    loss = DiceCELoss()(low, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, DiceCELoss()(low.double(), labels).float())


def test_deep_supervision_weighs_depths_as_nnunet_does():
    # 1, 1/2, 1/4, and nothing for the lowest of four depths, normalised to sum 1.
    assert DeepSupervision(DiceCELoss()).weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert DeepSupervision(DiceCELoss()).weights(5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    assert DeepSupervision(DiceCELoss()).weights(1) == [1]
    logits, labels = depths()
    expected = torch.zeros((), dtype=torch.float64)
    for weight, x in zip((4 / 7, 2 / 7, 1 / 7), logits[:3], strict=True):
        target = F.interpolate(labels[:, None].double(), x.shape[2:], mode="nearest-exact")[:, 0].long()
        expected = expected + weight * DiceCELoss()(x, target)
    torch.testing.assert_close(DeepSupervision(DiceCELoss())(logits, labels), expected)


def test_deep_supervision_is_monai_s_as_auto3dseg_sets_it():
    logits, labels = depths()
    inner = MonaiDiceCELoss(**AUTO3DSEG)
    theirs = DeepSupervisionLoss(inner)(logits, labels[:, None].double())
    loss = DeepSupervision(DiceCELoss(smooth_top=0.0), weights="monai")
    ours = loss(logits, labels)
    torch.testing.assert_close(ours, theirs, check_dtype=False)  # MONAI sums the depths in float32
    torch.testing.assert_close(gradients(ours, *logits), gradients(theirs, *logits), atol=1e-7, rtol=1e-5)
    twin = DeepSupervision(DiceCELoss(smooth_top=0.0), weights="nnunet")(logits, labels)
    assert abs((twin - theirs).item()) > 1e-3
    assert loss.weights(4) == [1, 0.5, 0.25, 0.125]


def test_logits_of_one_depth_need_no_list():
    logits, labels = case()
    for rule in ("nnunet", "monai"):
        loss = DeepSupervision(DiceCELoss(), weights=rule)
        torch.testing.assert_close(loss(logits, labels), DiceCELoss()(logits, labels))
        torch.testing.assert_close(loss([logits], labels), DiceCELoss()(logits, labels))


@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 4, 4), (8, 4, 2), (5, 3, 7), (16, 16, 16)])
def test_coarser_targets_are_nearest_exact(shape):
    labels = torch.randint(0, 3, (2, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    reference = F.interpolate(labels[:, None].double(), shape, mode="nearest-exact")[:, 0].long()
    assert torch.equal(nearest(labels, shape), reference)
    plain = F.interpolate(labels[:, None].double(), shape, mode="nearest")[:, 0].long()
    assert shape == (16, 16, 16) or not torch.equal(plain, reference)  # the twin that must differ


@pytest.mark.parametrize("name", ["dice_ce", "nnunet", "auto3dseg"])
def test_the_configured_losses_are_these(name):
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=[f"loss={name}"])
    loss = instantiate(cfg.loss)
    logits, labels = case()
    if name == "nnunet":
        expected = 1 + nnunet(logits, labels)
        torch.testing.assert_close(loss(logits, labels), expected)
    else:
        assert loss(logits, labels).item() == pytest.approx(equation(logits, labels), rel=1e-6)
    assert loss.rule == ("monai" if name == "auto3dseg" else "nnunet")
