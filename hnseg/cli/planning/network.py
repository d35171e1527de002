"""What a network is, read from its modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from dynamic_network_architectures.building_blocks.simple_conv_blocks import (
    ConvDropoutNormReLU,
    StackedConvBlocks,
)
from torch import nn

from hnseg.models.nets import ChannelGate

Properties = dict[str, Any]
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORMS = (nn.InstanceNorm3d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_NONLINEARITIES = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish)


def read_network(network: nn.Module) -> Properties:
    """Properties of the paper's tables.

    Args:
        network: As `hnseg.models.nets` builds it, on any device, meta included.
    """
    core: Any = network.network
    name = type(core).__name__
    gated = "gated " if isinstance(network.gate, ChannelGate) else ""
    return {
        "Normalization Layer": _only(_norm(m) for m in core.modules() if isinstance(m, _NORMS)),
        "Nonlinearity": _only(_nonlinearity(m) for m in core.modules() if isinstance(m, _NONLINEARITIES)),
        "Dropout": next((m.p for m in core.modules() if isinstance(m, _DROPOUTS) and m.p), None),
        "LeakyReLU Slope": _only(m.negative_slope for m in core.modules() if isinstance(m, nn.LeakyReLU)),
        **(_segresnet(core, gated + name) if name == "SegResNetDS" else _unet(core, gated + name)),
    }


def _unet(core: Any, name: str) -> Properties:
    """nnU-Net's networks: an encoder, perhaps with a stem, and a decoder, each a list of stages."""
    stem = list(_main_convolutions(getattr(core.encoder, "stem", None) or nn.Identity()))
    stages = [list(_main_convolutions(stage)) for stage in core.encoder.stages]
    up = [list(_main_convolutions(stage)) for stage in core.decoder.stages]
    everything = [conv for stage in (stem, *stages, *up) for conv in stage]
    return {
        "Network Class": f"{name} ({len(everything[0].kernel_size)}D)",
        "Number of Stages": len(stages),
        "Features per Stage": [stage[-1].out_channels for stage in stages],
        "Kernel Sizes": _only(list(conv.kernel_size) for conv in everything),
        "Strides": [torch.tensor([conv.stride for conv in stage]).prod(0).tolist() for stage in stages],
        "Convolutions per Stage (Encoder)": [len(stage) for stage in stages],
        "Convolutions per Stage (Decoder)": [len(stage) for stage in up],
        "Residual Blocks per Stage": [_count(stage, BasicBlockD) for stage in core.encoder.stages],
        "Convolution Bias": _only(conv.bias is not None for conv in everything),
        "Input Channels": everything[0].in_channels,
        "Output Channels": core.decoder.seg_layers[-1].out_channels,
        "Supervised Depths": len(core.decoder.seg_layers),
    }


def _segresnet(core: Any, name: str) -> Properties:
    """MONAI's SegResNetDS."""
    heads = [level["head"] for level in core.up_layers if isinstance(level["head"], nn.Conv3d)]
    return {
        "Network Architecture": name,
        "Initial Filters": core.encoder.conv_init.out_channels,
        "Downsampling Blocks": [len(level["blocks"]) for level in core.encoder.layers],
        "Input Channels": core.encoder.conv_init.in_channels,
        "Output Channels": heads[-1].out_channels,
        "Supervised Depths": len(heads),
        "Residual Depth": {"supervised depths": len(heads)},
    }


def _main_convolutions(stage: nn.Module) -> Iterator[nn.Conv3d]:
    """A stage's convolutions in their order; a residual block's projection of its input is none of them."""
    for module in stage.modules():
        if isinstance(module, BasicBlockD):
            yield from (module.conv1.conv, module.conv2.conv)
        elif isinstance(module, StackedConvBlocks):
            yield from (block.conv for block in module.convs if isinstance(block, ConvDropoutNormReLU))


def _norm(module: nn.Module) -> Properties:
    affine = bool(getattr(module, "affine", getattr(module, "elementwise_affine", False)))
    # Ours is PyTorch's layer, computed another way.
    kind = next(norm for norm in _NORMS if isinstance(module, norm))
    return {"layer": kind.__name__, "eps": module.eps, "affine": affine}


def _nonlinearity(module: nn.Module) -> Properties:
    return {"layer": type(module).__name__, "inplace": getattr(module, "inplace", None)}


def _count(stage: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in stage.modules())


def _only(values: Iterator[Any]) -> Any:
    """The value that all share, or else the list of those there are; None without any."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct[0] if len(distinct) == 1 else distinct or None
