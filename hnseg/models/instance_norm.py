"""Instance norm that leaves channels-last activations as they lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
