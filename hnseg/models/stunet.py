"""STU-Net, a U-Net of residual blocks whose width and depth scale (Huang et al. 2023, arXiv 2304.06716)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnseg.models.nets import InstanceNorm, Network


class STUNet(Network):
    """STU-Net (paper section 3 and Table 1); its small model STU-Net-S has the features 16-32-64-128-256-256.

    Args:
        in_channels: Input channels.
        out_channels: Classes, background included.
        features: Feature maps of each stage.
        strides: Downsampling of each stage, a number or (z, y, x); 1 for the first.
        depth: Residual blocks of each stage of encoder and decoder.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        features: Sequence[int],
        strides: Sequence[int | Sequence[int]],
        depth: int = 1,
    ) -> None:
        super().__init__()
        if len(strides) != len(features):
            raise ValueError(f"{len(features)} features but {len(strides)} strides; give one for each stage")
        self.encoder, self.up, self.decoder, self.outputs = (nn.ModuleList() for _ in range(4))
        sides: list[Any] = [stride if isinstance(stride, int) else tuple(stride) for stride in strides]
        for width, out, side in zip([in_channels, *features[:-1]], features, sides, strict=True):
            self.encoder.append(_stage(width, out, depth, side))
        for deep, out, side in zip(features[:0:-1], features[-2::-1], sides[:0:-1], strict=True):
            self.up.append(_Upsample(deep, out, side))
            self.decoder.append(_stage(2 * out, out, depth))
            self.outputs.append(nn.Conv3d(out, out_channels, 1))
        for name, weights in self.named_parameters():  # nnU-Net's initialisation
            if weights.ndim == 5:
                nn.init.kaiming_normal_(weights, a=1e-2)
            elif name.endswith("bias"):
                nn.init.zeros_(weights)

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        skips = []
        for stage in self.encoder:
            image = stage(image)
            skips.append(image)
        depths = []
        for up, stage, output, skip in zip(self.up, self.decoder, self.outputs, skips[-2::-1], strict=True):
            image = stage(torch.cat([up(image), skip], dim=1))
            if self.training or output is self.outputs[-1]:
                depths.append(output(image))
        return depths[::-1] if self.training else depths[0]

    def blocks(self) -> Iterable[nn.Module]:
        return [*self.encoder, *self.decoder]

    def heads(self) -> Sequence[nn.Module]:
        return list(self.outputs)[::-1]


def _stage(width: int, out: int, depth: int, stride: Any = 1) -> nn.Sequential:
    """Residual blocks, the first of which changes width and resolution."""
    return nn.Sequential(_Block(width, out, stride), *(_Block(out, out) for _ in range(depth - 1)))


class _Block(nn.Module):
    """Two convolutions, and a shortcut that is a 1 × 1 × 1 convolution where the block changes the shape."""

    def __init__(self, width: int, out: int, stride: Any = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, out, 3, stride or 1, padding=1)
        self.norm1, self.norm2 = InstanceNorm(out, affine=True), InstanceNorm(out, affine=True)
        self.conv2 = nn.Conv3d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if stride is None else nn.Conv3d(width, out, 1, stride)

    def forward(self, image: Tensor) -> Tensor:
        """(B, width, z, y, x) → (B, out, z / stride, y / stride, x / stride)."""
        first = F.leaky_relu(self.norm1(self.conv1(image)))
        return F.leaky_relu(self.norm2(self.conv2(first)) + self.shortcut(image))


class _Upsample(nn.Module):
    """Nearest neighbours, then a 1 × 1 × 1 convolution."""

    def __init__(self, width: int, out: int, stride: Any) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=stride, mode="nearest")
        self.conv = nn.Conv3d(width, out, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, width, z, y, x) → (B, out, stride × z, stride × y, stride × x)."""
        return self.conv(self.upsample(image))
