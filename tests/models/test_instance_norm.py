"""Instance norm on channels-last activations is PyTorch's own, forward and backward, without its copies."""

import pytest
import torch
import torch.nn.functional as F
from members import TINY
from torch import nn

from hnseg.models import nets
from hnseg.models.nets import InstanceNorm

LAST = torch.channels_last_3d


def activations(batch: int, dtype: torch.dtype, channels: int = 6) -> torch.Tensor:
    """With means and deviations of their own, (B, C, 5, 6, 7)."""
    generator = torch.Generator().manual_seed(0)
    scale, shift = (torch.randn(batch, channels, 1, 1, 1, generator=generator) for _ in "ab")
    values = torch.randn(batch, channels, 5, 6, 7, generator=generator) * (1 + scale.abs()) + 3 * shift
    return values.to(dtype).contiguous(memory_format=LAST)


def norm(kind: type[nn.InstanceNorm3d], channels: int = 6) -> nn.InstanceNorm3d:
    made = kind(channels, affine=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.weight.copy_(torch.randn(channels, generator=generator))
        made.bias.copy_(torch.randn(channels, generator=generator))
    return made


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_it_is_pytorchs_up_to_bfloat16_forward_and_backward(batch: int) -> None:
    image = activations(batch, torch.bfloat16)
    ours, theirs = norm(InstanceNorm), norm(nn.InstanceNorm3d)
    shown, exact = image.clone().requires_grad_(), image.double().requires_grad_()
    result, expected = ours(shown), theirs.double()(exact)
    assert result.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(result.double(), expected, rtol=2**-7, atol=2**-7)
    weights = torch.linspace(-1, 1, image.numel()).view_as(image).to(torch.bfloat16)
    result.backward(weights)
    expected.backward(weights.double())
    torch.testing.assert_close(shown.grad.double(), exact.grad, rtol=2**-6, atol=2**-6)
    for name in ("weight", "bias"):
        mine, other = getattr(ours, name).grad.double(), getattr(theirs, name).grad
        assert (mine - other).abs().max() < 2**-5 * other.abs().max()


@pytest.mark.parametrize("reason", ["float32", "order", "size"])
def test_what_does_not_suit_is_left_to_pytorch(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, whose sums would lose digits, PyTorch's own order of memory, and too many voxels to add up."""
    image = activations(2, torch.float32 if reason == "float32" else torch.bfloat16)
    image = image.contiguous() if reason == "order" else image
    if reason == "size":
        voxels = image[0, 0].numel()
        monkeypatch.setattr(nets, "MAX_VOXELS_PER_THREAD", voxels / torch.get_num_threads() - 0.1)
    monkeypatch.setattr(F, "batch_norm", None)
    assert torch.equal(norm(InstanceNorm)(image), norm(nn.InstanceNorm3d)(image))


def test_the_mean_of_a_scan_that_is_mostly_air_is_right() -> None:
    """As many voxels as are taken at most, most of them of one value."""
    image = torch.randn(1, 4, 64, 64, 32 * torch.get_num_threads()) * 0.5 + 1
    image[:, :, :45] = torch.linspace(0.1, 3, 4).view(1, 4, 1, 1, 1)
    image = image.to(torch.bfloat16).contiguous(memory_format=LAST)
    result = norm(InstanceNorm, 4)
    nn.init.ones_(result.weight)
    nn.init.zeros_(result.bias)
    means = result(image).double().mean(dim=(2, 3, 4))
    assert means.abs().max() < 2**-7


@pytest.mark.parametrize("model", ["plainconv", "segresnet"])
def test_gradients_are_as_near_to_float32s_as_with_pytorchs(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a whole network on random weights: what bfloat16 does elsewhere is far more."""
    ours = gradients(model, torch.bfloat16)
    monkeypatch.setattr(nets, "InstanceNorm", nn.InstanceNorm3d)
    theirs, exact = gradients(model, torch.bfloat16), gradients(model, torch.float32)
    assert not torch.equal(ours, theirs)
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


def gradients(model: str, dtype: torch.dtype) -> torch.Tensor:
    """Of a mean of squares, all in one."""
    torch.manual_seed(0)
    network = nets.build(in_channels=2, out_channels=3, **TINY[model]).train().to(memory_format=LAST)
    image = torch.randn(2, 2, 16, 16, 16).contiguous(memory_format=LAST)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = sum((depth.float() - 1).square().mean() for depth in network(image))
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in network.parameters()])
