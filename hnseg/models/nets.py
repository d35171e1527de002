"""Three networks behind one contract, with a learned gate before their input where one is asked for.

In training mode a network returns its logits at every supervised depth, finest first; in evaluation
mode it returns the finest logits alone. Input and logits are (B, C, z, y, x); what the sides of the
input must be multiples of, `hnseg.models.sides.divisor` says.

The libraries that have them are imported when one is built: converted networks run without, and they take
seconds and hundreds of MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hnseg.construct import building
from hnseg.errors import HnsegError
from hnseg.models.gate import ChannelGate
from hnseg.models.instance_norm import replace_norms

if TYPE_CHECKING:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from monai.networks.nets import SegResNetDS

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
