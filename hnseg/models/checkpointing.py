"""Gradient checkpointing: less memory for activations, for the price of computing them twice."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from hnseg.models.nets import SegResNet, UNet


def checkpoint_blocks(network: UNet | SegResNet) -> None:
    """Lets the blocks of a network forget their activations, which the backward pass computes again.

    Gradients stay the same. What is kept are the blocks' inputs: the U-Nets' stages, SegResNetDS's residual
    blocks. Without gradients nothing changes.

    Args:
        network: Changed in place; the names of its weights stay.
    """
    for block in _blocks(network.network):
        # No layer draws random numbers, so that there is no state of a generator to keep.
        forward: Any = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward


def _blocks(network: nn.Module) -> Iterable[nn.Module]:
    from dynamic_network_architectures.architectures.unet import AbstractDynamicNetworkArchitectures
    from monai.networks.nets.segresnet_ds import SegResBlock

    if not isinstance(network, AbstractDynamicNetworkArchitectures):
        return [module for module in network.modules() if isinstance(module, SegResBlock)]
    encoder, decoder = network.encoder, network.decoder
    stem = getattr(encoder, "stem", None)
    return [*([stem] if stem is not None else []), *encoder.stages, *decoder.stages]
