"""The networks behind one contract: input gate, channels-last norm, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hnseg.construct import building
from hnseg.errors import HnsegError

if TYPE_CHECKING:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from monai.networks.nets import SegResNetDS


class ChannelGate(nn.Module):
    """Multiplies each input channel by a weight that is learned with the network.

    The weights are C × softmax of C parameters: positive, C in sum, and 1 each to begin with, so that an
    untrained gate changes nothing. They compete because a factor common to all channels means nothing: the
    instance norm behind the first convolution takes it out again. They do not depend on the image, and can be
    read as what the training made of the channels (the paper's discussion: adaptive channel selection).

    Args:
        channels: Input channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(channels))

    @property
    def weights(self) -> Tensor:
        """Of the channels, (C,)."""
        return len(self.logits) * self.logits.softmax(0)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, z, y, x) → the same shape."""
        return image * self.weights[:, None, None, None]


_MOST = 2**17  # voxels that a thread adds up


class InstanceNorm(nn.InstanceNorm3d):
    """`nn.InstanceNorm3d`, without its two copies of every activation on a processor.

    PyTorch's own brings channels-last activations into its order of memory, and convolutions bring the result
    back: a fifth to a third of a training step on a CPU. Batch norm has a kernel for channels-last, and over
    the batch of one sample it is instance norm. That kernel adds a channel's voxels up one by one in float32.
    It is taken for bfloat16 alone, and for no more voxels than it adds up as well as bfloat16 keeps them: in
    a volume that is mostly of one value, as scans are of air, the mean of 2^17 voxels a thread is off by
    0.004 deviations, of 2^21 by 0.04. A network's gradients are then as far from float32's as without it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, z, y, x) → the same shape, each channel of each sample normalised over its voxels."""
        if not self._lies_well(input):
            return super().forward(input)
        samples = [
            F.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for sample in input.split(1)
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)

    def _lies_well(self, input: Tensor) -> bool:
        """Whether the kernel suits; what is traced or compiled for elsewhere keeps its usual operation."""
        return (
            input.device.type == "cpu"
            and input.dtype == torch.bfloat16
            and input.ndim == 5
            and input.is_contiguous(memory_format=torch.channels_last_3d)
            and input[0, 0].numel() <= _MOST * torch.get_num_threads()
            and not self.track_running_stats
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
        )


def replace_norms(network: nn.Module, kind: type[nn.InstanceNorm3d] = InstanceNorm) -> None:
    """Lets all instance norms of a network be of one kind; weights and their names stay.

    By their class, since nnU-Net's blocks hold each norm under two names, and MONAI's take a norm by its name
    alone.

    Args:
        network: Changed in place.
        kind: `InstanceNorm`, or PyTorch's own.
    """
    for module in network.modules():
        if type(module) in (nn.InstanceNorm3d, InstanceNorm):
            module.__class__ = kind


Strides = Sequence[int | Sequence[int]]
Layer = str | Sequence[Any]


class UNet(nn.Module):
    """nnU-Net's networks: deep supervision follows the mode, as the contract wants it."""

    def __init__(self, network: PlainConvUNet | ResidualEncoderUNet) -> None:
        super().__init__()
        self.gate: nn.Module = nn.Identity()
        self.network = network

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, z, y, x); in training a list of them, finest first."""
        self.network.decoder.deep_supervision = self.training
        return self.network(self.gate(image))


class SegResNet(nn.Module):
    """MONAI's SegResNetDS as Auto3DSeg builds it; it follows the contract by itself."""

    def __init__(self, network: SegResNetDS) -> None:
        super().__init__()
        self.gate: nn.Module = nn.Identity()
        self.network = network

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, z, y, x); in training a list of them, finest first."""
        logits = self.network(self.gate(image))
        return list(logits) if self.training and not isinstance(logits, Tensor) else logits


def plainconv(
    in_channels: int,
    out_channels: int,
    *,
    features: Sequence[int],
    strides: Strides,
    convolutions: int | Sequence[int] = 2,
    decoder_convolutions: int | Sequence[int] = 2,
    **layers: Any,
) -> UNet:
    """nnU-Net's PlainConvUNet (paper Tables 1 and 2).

    Args:
        in_channels: Input channels.
        out_channels: Classes, background included.
        features: Feature maps a stage.
        strides: Downsampling a stage, a number or (z, y, x); 1 for the first.
        convolutions: Convolutions a stage of the encoder.
        decoder_convolutions: Convolutions a stage of the decoder.
        layers: `kernels`, sides for all stages or each, a number or (z, y, x); `bias` of convolutions;
            `norm_eps` of the instance norm; `slope` of the leaky ReLU.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    counts = {
        "n_conv_per_stage": _counts(convolutions),
        "n_conv_per_stage_decoder": _counts(decoder_convolutions),
    }
    return _unet(PlainConvUNet, in_channels, out_channels, features, strides, counts, **layers)


def resenc(
    in_channels: int,
    out_channels: int,
    *,
    features: Sequence[int],
    strides: Strides,
    blocks: Sequence[int],
    decoder_convolutions: int | Sequence[int] = 1,
    **layers: Any,
) -> UNet:
    """nnU-Net's ResidualEncoderUNet (paper Table 3). Arguments as for `plainconv`; `blocks` a stage."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    counts = {"n_blocks_per_stage": list(blocks), "n_conv_per_stage_decoder": _counts(decoder_convolutions)}
    return _unet(ResidualEncoderUNet, in_channels, out_channels, features, strides, counts, **layers)


def segresnet(
    in_channels: int,
    out_channels: int,
    *,
    init_filters: int,
    blocks_down: Sequence[int],
    depths: int,
    norm: Layer = "INSTANCE",
    activation: Layer = "RELU",
    resolution: Sequence[float] | None = None,
) -> SegResNet:
    """MONAI's SegResNetDS (paper Table 4).

    Args:
        in_channels: Input channels.
        out_channels: Classes, background included.
        init_filters: Feature maps of the first stage, doubled at each further one.
        blocks_down: Residual blocks a stage of the encoder.
        depths: Supervised depths.
        norm: By MONAI's name, or name and arguments.
        activation: Likewise.
        resolution: Spacing along the network's axes, if strides and kernels are to follow it.
    """
    from monai.networks.nets import SegResNetDS

    return SegResNet(
        SegResNetDS(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            init_filters=init_filters,
            blocks_down=tuple(blocks_down),
            dsdepth=depths,
            norm=_layer(norm),
            act=_layer(activation),
            resolution=None if resolution is None else tuple(resolution),
        )
    )


ARCHITECTURES = {"plainconv": plainconv, "resenc": resenc, "segresnet": segresnet}


def build(
    architecture: str, in_channels: int, out_channels: int, *, gate: bool = False, **settings: object
) -> UNet | SegResNet:
    """Builds a network by name, from the plain settings that a checkpoint carries.

    Args:
        architecture: Its name.
        in_channels: Input channels.
        out_channels: Classes, background included.
        gate: Weigh the input channels by a learned `hnseg.models.gate.ChannelGate`.
        settings: Of the architecture.

    Raises:
        HnsegError: Unknown name, or settings that it does not have or cannot be built with.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise HnsegError(f"model.architecture={architecture} is unknown; choose one of {known}")
    with building("model.settings"):
        network = ARCHITECTURES[architecture](in_channels, out_channels, **settings)  # type: ignore[operator]
    replace_norms(network)
    if gate:
        network.gate = ChannelGate(in_channels)
    return network


def _unet(
    kind: type[PlainConvUNet] | type[ResidualEncoderUNet],
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Strides,
    counts: dict[str, Any],
    *,
    kernels: int | Strides = 3,
    bias: bool = True,
    norm_eps: float = 1e-5,
    slope: float = 0.01,
) -> UNet:
    """What nnU-Net's two networks have in common: layers and initialisation."""
    network = kind(
        in_channels,
        len(features),
        list(features),
        num_classes=out_channels,
        strides=_sides(strides),
        conv_op=nn.Conv3d,
        kernel_sizes=kernels if isinstance(kernels, int) else _sides(kernels),
        conv_bias=bias,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": norm_eps, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"negative_slope": slope, "inplace": True},
        deep_supervision=True,
        **counts,
    )
    return UNet(network.apply(network.initialize))


def _sides(stages: Strides) -> list[int | list[int]]:
    return [side if isinstance(side, int) else list(side) for side in stages]


def _counts(counts: int | Sequence[int]) -> int | list[int]:
    return counts if isinstance(counts, int) else list(counts)


def _layer(told: Layer) -> str | tuple[Any, ...]:
    """A copy, since MONAI writes its defaults into the arguments."""
    return told if isinstance(told, str) else tuple(deepcopy(list(told)))


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
