"""A learned weight for each input channel: which of the enhanced channels a network makes use of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
