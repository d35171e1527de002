"""Whole volumes, padding, mirroring, axes and arithmetic, against sums written out by hand.

Windows are held against nnU-Net and MONAI in tests/parity/test_parity_windows.py.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from members import card
from torch import Tensor, nn

from hnseg.card import Axes, Card, Window
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
    torch.testing.assert_close(Predictor((8, 8, 8), mirror=(0, 1, 2))(network, volume), by_hand.detach())


def test_a_network_of_other_axes_sees_the_volume_turned_and_mirrored_along_ours(network: nn.Module) -> None:
    volume, axes = image(8, 6, 4), Axes(order=(2, 1, 0), flip=(0,))
    by_hand = [
        network(one.permute(0, 1, 4, 3, 2).flip(2)).flip(2).permute(0, 1, 4, 3, 2)
        for one in (volume, volume.flip(2))
    ]
    by_hand[1] = by_hand[1].flip(2)
    predictor = Predictor((8, 6, 4), mirror=(0,), axes=axes)
    torch.testing.assert_close(predictor(network, volume), torch.stack(by_hand).mean(0).detach())


def test_a_member_says_its_windows_and_whether_it_may_be_mirrored() -> None:
    usual = Card(**card("fine", "plainconv", patch=[8, 8, 8]))
    assert Predictor.of(usual, mirror=True) == Predictor((8, 8, 8), mirror=(0, 1, 2))
    assert Predictor.of(usual) == Predictor((8, 8, 8))
    unmirrored = replace(usual, window=Window("monai", 0.625), mirror_axes=())
    assert Predictor.of(unmirrored, mirror=True) == Predictor((8, 8, 8), "monai", 0.625)


RAS = Axes(order=(2, 1, 0), flip=(0, 1))
TURNED = Axes(order=(1, 2, 0), flip=(2,))  # not its own inverse
IMAGE = torch.arange(2 * 3 * 4 * 5.0).reshape(1, 2, 3, 4, 5)


def test_ras_is_that_of_simpleitk() -> None:
    turn = sitk.DICOMOrientImageFilter()
    turn.SetDesiredCoordinateOrientation("RAS")
    image = turn.Execute(sitk.GetImageFromArray(IMAGE[0, 0].numpy()))
    np.testing.assert_array_equal(
        RAS.to_network(IMAGE)[0, 0], sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    )


@pytest.mark.parametrize("axes", [Axes(), RAS, TURNED])
def test_the_way_back_undoes_the_way_there(axes: Axes) -> None:
    seen = axes.to_network(IMAGE)
    assert tuple(seen.shape[2:]) == axes.shape_to_network((3, 4, 5))
    assert axes.shape_from_network(axes.shape_to_network((3, 4, 5))) == (3, 4, 5)
    assert torch.equal(axes.from_network(seen), IMAGE)
