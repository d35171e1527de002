"""The contract that all networks keep in both modes; tests/parity holds them against their makers' own."""

import pytest
import torch
from members import TINY

from hnseg.errors import HnsegError
from hnseg.models.nets import build


@pytest.mark.parametrize("architecture", TINY)
def test_training_gives_all_depths_finest_first_and_evaluation_the_finest(architecture):
    network = build(architecture, 2, 3, **TINY[architecture])
    image = torch.randn(1, 2, 8, 12, 16)
    depths = network.train()(image)
    assert isinstance(depths, list)
    assert [tuple(d.shape) for d in depths] == [(1, 3, 8, 12, 16), (1, 3, 4, 6, 8)]
    logits = network.eval()(image)
    assert isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits, depths[0])
    assert isinstance(network.train()(image), list)  # and back again


@pytest.mark.parametrize("architecture", TINY)
def test_every_weight_learns(architecture):
    torch.manual_seed(0)
    network = build(architecture, 2, 3, **TINY[architecture]).train()
    sum(depth.square().mean() for depth in network(torch.randn(1, 2, 8, 8, 8))).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None]
    # nnU-Net builds a head at every resolution, and Lightning runs without find_unused_parameters.
    assert still == []


def test_an_unknown_architecture_is_refused_with_those_there_are():
    with pytest.raises(HnsegError, match=r"architecture=unetr is unknown; choose one of plainconv, resenc"):
        build("unetr", 1, 2)
