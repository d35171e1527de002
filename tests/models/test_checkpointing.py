"""Gradient checkpointing, against the same network without it."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hnseg.models.losses import DeepSupervision, DiceCELoss
from hnseg.models.nets import build, checkpoint_blocks

NETWORKS = {
    "plainconv": {"features": [4, 8, 8], "strides": [1, 2, 2]},
    "resenc": {"features": [4, 8, 8], "strides": [1, 2, 2], "blocks": [1, 2, 2]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 2, 2], "depths": 2},
}


def step(network):
    """The loss, its gradients, and how many numbers the forward pass keeps for the backward pass."""
    torch.manual_seed(1)
    image, target = torch.randn(2, 2, 16, 16, 16), torch.randint(3, (2, 16, 16, 16))
    kept = {}
    weights = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = DeepSupervision(DiceCELoss())(network(image), target)
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in network.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("architecture", NETWORKS)
def test_gradients_are_the_same_and_less_is_kept(architecture):
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(build(architecture, 2, 3, **NETWORKS[architecture]))
    plain, saving = networks
    names = list(saving.state_dict())
    checkpoint_blocks(saving)
    assert list(saving.state_dict()) == names
    (loss, gradients, kept), (same_loss, same_gradients, fewer) = step(plain), step(saving)
    assert same_loss == loss
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=0, atol=0, equal_nan=True)
    assert fewer < kept / 1.5


@pytest.mark.parametrize("architecture", NETWORKS)
def test_predictions_are_the_same(architecture):
    network = build(architecture, 2, 3, **NETWORKS[architecture]).eval()
    image = torch.randn(1, 2, 16, 16, 16)
    with torch.no_grad():
        before = network(image)
        checkpoint_blocks(network)
        assert torch.equal(network(image), before)
