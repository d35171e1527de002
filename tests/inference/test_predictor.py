"""Whole volumes, sliding windows, mirroring and arithmetic, against MONAI and sums written out by hand."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from hnseg.inference.predictor import Predictor


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, 3, 3, padding=1)).eval()


def image(*shape: int) -> Tensor:
    return torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))


def test_a_volume_of_the_patchs_size_is_the_networks_own_output(network: nn.Module) -> None:
    volume = image(8, 12, 16)
    logits = Predictor((8, 12, 16))(network, volume)
    assert torch.equal(logits, network(volume))
    assert not logits.requires_grad


def test_a_larger_volume_is_monais_sliding_window(network: nn.Module) -> None:
    volume = image(15, 20, 9)
    expected = SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian")(volume, network)
    torch.testing.assert_close(Predictor((8, 8, 8))(network, volume), expected)


def test_windows_of_a_pointwise_network_leave_no_seam() -> None:
    network = nn.Conv3d(2, 3, 1)
    volume = image(13, 17, 11)
    torch.testing.assert_close(
        Predictor((8, 8, 8))(network, volume), network(volume).detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 5, 7), (5, 20, 8)])
def test_a_volume_smaller_than_the_patch_keeps_its_shape(
    network: nn.Module, shape: tuple[int, int, int]
) -> None:
    sizes = []

    def spy(window: Tensor) -> Tensor:
        sizes.append(tuple(window.shape[2:]))
        return network(window)

    assert Predictor((8, 8, 8))(spy, image(*shape)).shape == (1, 3, *shape)
    assert set(sizes) == {(8, 8, 8)}


def test_a_small_volume_is_shown_among_zeros() -> None:
    network = nn.Conv3d(2, 3, 3, padding=1, bias=False)
    volume = image(4, 8, 8)
    shown = F.pad(volume, (0, 0, 0, 0, 2, 2))
    torch.testing.assert_close(Predictor((8, 8, 8))(network, volume), network(shown)[:, :, 2:6].detach())


def test_mirroring_is_the_mean_over_eight_flips(network: nn.Module) -> None:
    volume = image(8, 8, 8)
    flips = [
        [axis for axis, on in zip((2, 3, 4), bits, strict=True) if on] for bits in product((0, 1), repeat=3)
    ]
    by_hand = torch.stack([network(volume.flip(axes)).flip(axes) for axes in flips]).mean(0)
    torch.testing.assert_close(Predictor((8, 8, 8), mirror=True)(network, volume), by_hand.detach())


def test_mirroring_does_nothing_to_a_network_that_does_not_know_sides() -> None:
    network = nn.Conv3d(2, 3, 1)
    volume = image(8, 8, 8)
    mirrored = Predictor((8, 8, 8), mirror=True)(network, volume)
    torch.testing.assert_close(mirrored, network(volume).detach())


def test_bfloat16_is_close_to_float32_and_comes_back_as_float32(network: nn.Module) -> None:
    volume = image(12, 12, 12)
    exact = Predictor((8, 8, 8))(network, volume)
    rounded = Predictor((8, 8, 8), precision="bfloat16")(network, volume)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
