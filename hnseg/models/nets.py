"""The networks behind one contract, with an input gate, a channels-last norm and gradient checkpointing.

To add a network: a class that derives from `Network`, in a module of its own, and a YAML in conf/model whose
`model.settings._target_` names the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import get_class
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hnseg.config import building
from hnseg.errors import HnsegError

Triple = tuple[int, int, int]
Strides = Sequence[int | Sequence[int]]
Layer = str | Sequence[Any]
Framework = Literal["nnunet", "auto3dseg"]


class Network(nn.Module):
    """What training and inference ask of a network.

    A subclass takes `in_channels` and `out_channels` (the background included), and as keywords its settings:
    plain numbers, lists and names, which a configuration and a checkpoint can hold.
    """

    # Whose training this network comes from: `fusion: authors` averages the logits of nnU-Net's networks.
    framework: ClassVar[Framework] = "nnunet"

    def __init__(self) -> None:
        super().__init__()
        self.gate: nn.Module = nn.Identity()

    @classmethod
    def stride_product(cls, settings: Mapping[str, Any]) -> Triple:
        """What each side (z, y, x) of the input must be a multiple of: the product of all stages' strides.

        Args:
            settings: Of the network; here `strides`, a number or (z, y, x) for each stage.
        """
        z, y, x = np.prod([np.broadcast_to(stride, 3) for stride in settings["strides"]], axis=0)
        return int(z), int(y), int(x)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, C, z, y, x) → logits (B, K, z, y, x); in training a list of them, one a depth, finest first."""
        return self.logits(self.gate(image))

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        """As `forward`, of channels that the gate has weighed."""
        raise NotImplementedError

    def blocks(self) -> Iterable[nn.Module]:
        """The modules that gradient checkpointing runs again in the backward pass; none is random."""
        raise NotImplementedError

    def heads(self) -> Sequence[nn.Module]:
        """The layers that make the logits of each depth, finest first."""
        raise NotImplementedError


class _UNet(Network):
    """nnU-Net's networks as the package dynamic-network-architectures builds them."""

    def __init__(
        self,
        kind: Literal["PlainConvUNet", "ResidualEncoderUNet"],
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        strides: Strides,
        *,
        kernels: int | Strides,
        bias: bool,
        norm_eps: float,
        slope: float,
        **counts: Any,
    ) -> None:
        super().__init__()
        from dynamic_network_architectures.architectures import unet

        if len(strides) != len(features):
            raise ValueError(f"{len(features)} features but {len(strides)} strides; give one for each stage")
        network = getattr(unet, kind)(
            in_channels,
            len(features),
            list(features),
            num_classes=out_channels,
            strides=_lists(strides),
            conv_op=nn.Conv3d,
            kernel_sizes=_lists(kernels),
            conv_bias=bias,
            norm_op=InstanceNorm,
            norm_op_kwargs={"eps": norm_eps, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"negative_slope": slope, "inplace": True},
            deep_supervision=True,
            **{key: _lists(count) for key, count in counts.items()},
        )
        self.network = network.apply(network.initialize)

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        self.network.decoder.deep_supervision = self.training
        return self.network(image)

    def blocks(self) -> Iterable[nn.Module]:
        encoder, decoder = self.network.encoder, self.network.decoder
        stem = getattr(encoder, "stem", None)  # the residual encoder's
        return [*([] if stem is None else [stem]), *encoder.stages, *decoder.stages]

    def heads(self) -> Sequence[nn.Module]:
        return list(self.network.decoder.seg_layers)[::-1]


class PlainConvUNet(_UNet):
    """nnU-Net's PlainConvUNet (paper Tables 1 and 2).

    Args:
        in_channels: Input channels.
        out_channels: Classes, background included.
        features: Feature maps of each stage.
        strides: Downsampling of each stage, a number or (z, y, x); 1 for the first.
        convolutions: Convolutions of a stage of the encoder, a number for all stages or one for each.
        decoder_convolutions: Likewise of the decoder.
        kernels: Sides of the kernels, a number for all stages, or for each a number or (z, y, x).
        bias: Of the convolutions.
        norm_eps: Of the instance norm.
        slope: Of the leaky ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        features: Sequence[int],
        strides: Strides,
        convolutions: int | Sequence[int] = 2,
        decoder_convolutions: int | Sequence[int] = 2,
        kernels: int | Strides = 3,
        bias: bool = True,
        norm_eps: float = 1e-5,
        slope: float = 0.01,
    ) -> None:
        layers: dict[str, Any] = {"kernels": kernels, "bias": bias, "norm_eps": norm_eps, "slope": slope}
        counts: dict[str, Any] = {
            "n_conv_per_stage": convolutions,
            "n_conv_per_stage_decoder": decoder_convolutions,
        }
        super().__init__("PlainConvUNet", in_channels, out_channels, features, strides, **layers, **counts)


class ResidualEncoderUNet(_UNet):
    """nnU-Net's ResidualEncoderUNet (paper Table 3).

    Args:
        in_channels: Input channels.
        out_channels: Classes, background included.
        features: Feature maps of each stage.
        strides: Downsampling of each stage, a number or (z, y, x); 1 for the first.
        blocks: Residual blocks of each stage of the encoder.
        decoder_convolutions: Convolutions of a stage of the decoder, a number for all stages or one for each.
        kernels: Sides of the kernels, a number for all stages, or for each a number or (z, y, x).
        bias: Of the convolutions.
        norm_eps: Of the instance norm.
        slope: Of the leaky ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        features: Sequence[int],
        strides: Strides,
        blocks: Sequence[int],
        decoder_convolutions: int | Sequence[int] = 1,
        kernels: int | Strides = 3,
        bias: bool = True,
        norm_eps: float = 1e-5,
        slope: float = 0.01,
    ) -> None:
        layers: dict[str, Any] = {"kernels": kernels, "bias": bias, "norm_eps": norm_eps, "slope": slope}
        counts: dict[str, Any] = {
            "n_blocks_per_stage": blocks,
            "n_conv_per_stage_decoder": decoder_convolutions,
        }
        super().__init__(
            "ResidualEncoderUNet", in_channels, out_channels, features, strides, **layers, **counts
        )


class SegResNetDS(Network):
    """MONAI's SegResNetDS as Auto3DSeg builds it (paper Table 4).

    Args:
        in_channels: Input channels.
        out_channels: Classes, background included.
        init_filters: Feature maps of the first stage, doubled at each further one.
        blocks_down: Residual blocks of each stage of the encoder.
        depths: Supervised depths.
        norm: MONAI's name of the norm, or name and arguments.
        activation: MONAI's name of the activation, or name and arguments.
        resolution: Voxel size along the network's axes, where strides and kernels are to follow it.
    """

    framework = "auto3dseg"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        init_filters: int,
        blocks_down: Sequence[int],
        depths: int,
        norm: Layer = "INSTANCE",
        activation: Layer = "RELU",
        resolution: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        from monai.networks import nets
        from monai.networks.layers.factories import Norm, split_args

        name, arguments = split_args(_layer(norm))
        if name.upper() == "INSTANCE":  # MONAI takes layers by the names that its factory knows
            Norm.add_factory_class("HNSEG_INSTANCE", InstanceNorm)
            name = "HNSEG_INSTANCE"
        self.network = nets.SegResNetDS(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=out_channels,
            init_filters=init_filters,
            blocks_down=tuple(blocks_down),
            dsdepth=depths,
            norm=(name, arguments),
            act=_layer(activation),
            resolution=None if resolution is None else tuple(resolution),
        )

    @classmethod
    def stride_product(cls, settings: Mapping[str, Any]) -> Triple:
        """2 a stage but the first; with a `resolution`, strides are 1 or 2, and this still fits."""
        side = 2 ** (len(settings["blocks_down"]) - 1)
        return side, side, side

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        logits = self.network(image)
        return list(logits) if self.training and not isinstance(logits, Tensor) else logits

    def blocks(self) -> Iterable[nn.Module]:
        from monai.networks.nets.segresnet_ds import SegResBlock

        return [module for module in self.network.modules() if isinstance(module, SegResBlock)]

    def heads(self) -> Sequence[nn.Module]:
        levels: Any = self.network.up_layers
        return [level["head"] for level in levels[::-1] if isinstance(level["head"], nn.Conv3d)]


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


# Voxels that a thread may add up one by one. In a volume that is mostly of one value, as scans are of air,
# the mean of 2^17 of them is off by 0.004 deviations, about bfloat16's own rounding, of 2^21 by 0.04.
MAX_VOXELS_PER_THREAD = 2**17


class InstanceNorm(nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` without its two copies of every bfloat16 activation on a CPU.

    PyTorch's own brings channels-last activations into its order of memory, and convolutions bring the result
    back: a fifth to a third of a training step on a CPU. Batch norm has a kernel for channels-last, and over
    the batch of one sample it is instance norm. That kernel adds a channel's voxels up one by one in float32,
    so it is taken for bfloat16 alone, and up to `MAX_VOXELS_PER_THREAD`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, z, y, x) → the same shape, each channel of each sample normalised over its voxels."""
        if not self._suits_batch_norm(input):
            return super().forward(input)
        samples = [
            F.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for sample in input.split(1)
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)

    def _suits_batch_norm(self, input: Tensor) -> bool:
        return (
            input.device.type == "cpu"
            and input.dtype == torch.bfloat16
            and input.ndim == 5
            and input.is_contiguous(memory_format=torch.channels_last_3d)
            and input[0, 0].numel() <= MAX_VOXELS_PER_THREAD * torch.get_num_threads()
            and not self.track_running_stats
            and not torch.jit.is_tracing()  # OpenVINO and torch.compile know the usual operation
            and not torch.compiler.is_compiling()
        )


def network_class(target: str) -> type[Network]:
    """The class that `model.settings._target_` or a member's card names.

    Raises:
        HnsegError: There is no such class, it is no `Network` (a card must not run other code), or its
            framework is unknown.
    """
    try:
        found = get_class(target)
    except Exception as error:  # Hydra passes on whatever an import raises
        raise HnsegError(f"model.settings._target_={target}: no such network; check its name") from error
    if not issubclass(found, Network):
        raise HnsegError(
            f"model.settings._target_={target}: it does not derive from hnseg.models.nets.Network"
        )
    if found.framework not in (frameworks := get_args(Framework)):
        raise HnsegError(f"{target}: framework={found.framework}; choose {' or '.join(frameworks)}")
    return found


def stride_product(network: Mapping[str, Any]) -> Triple:
    """What each side (z, y, x) of a network's input must be a multiple of.

    Args:
        network: `_target_` and settings: `model.settings`, or `network` of a member's card.
    """
    return network_class(network["_target_"]).stride_product(network)


def build(
    _target_: str, in_channels: int, out_channels: int, *, gate: bool = False, **settings: Any
) -> Network:
    """Builds a network from what a member's card says of it.

    Args:
        _target_: Its class.
        in_channels: Input channels.
        out_channels: Classes, background included.
        gate: Weigh the input channels by a learned `ChannelGate`.
        settings: Of the class.

    Raises:
        HnsegError: No network's class, or settings that it does not have or cannot be built with.
    """
    kind: Any = network_class(_target_)
    with building("model.settings"):
        network: Network = kind(in_channels, out_channels, **settings)
    if gate:
        network.gate = ChannelGate(in_channels)
    return network


def checkpoint_blocks(network: Network) -> None:
    """Lets the blocks of a network forget their activations, which the backward pass computes again.

    Gradients stay the same, and what is kept are the blocks' inputs. Without gradients nothing changes.

    Args:
        network: Changed in place; the names of its weights stay.
    """
    for block in network.blocks():
        # No layer draws random numbers, so there is no state of a generator to keep.
        forward: Any = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward


def _lists(value: Any) -> Any:
    """Numbers as they are, and sequences as the lists that the libraries ask for."""
    return [_lists(one) for one in value] if isinstance(value, Sequence) else value


def _layer(layer: Layer) -> str | tuple[Any, ...]:
    """A copy, since MONAI writes its defaults into the arguments."""
    return layer if isinstance(layer, str) else tuple(deepcopy(list(layer)))
