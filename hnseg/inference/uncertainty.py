"""How sure an ensemble is: the entropy of what it says, and how far its members differ."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnseg.inference.fusion import RunningMean

# What `Spread.uncertainty` returns, in its order.
MAPS = ("entropy", "mutual_information")


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy over the classes, divided by log K: 0 is certain, 1 is no idea.

    Args:
        probabilities: (K, z, y, x), at least two classes.

    Returns:
        (z, y, x).
    """
    return torch.special.entr(probabilities).sum(0) / math.log(len(probabilities))


class Spread:
    """How members differ, from one member's logits after the other's.

    Memory does not grow with the number of members. Members count by the weights they are fused with.

    Args:
        information: Gather what `uncertainty` needs too: every member's softmax and entropy.
    """

    def __init__(self, *, information: bool = False) -> None:
        self.information = information
        self._votes, self._softmax, self._entropy = RunningMean(), RunningMean(), RunningMean()

    def add(self, logits: Tensor, weight: float = 1.0) -> None:
        """Adds a member.

        Args:
            logits: (K, z, y, x) float32, background first.
            weight: The member's.
        """
        # What argmax would tell, many times faster: it reads across memory.
        top = logits.amax(0)
        votes = (logits[1:] == top) & (logits[0] < top)
        self._votes.add(votes.float(), weight)
        if self.information:
            softmax = logits.softmax(0)
            self._softmax.add(softmax, weight)
            self._entropy.add(entropy(softmax), weight)

    def agreement(self) -> NDArray[np.float32]:
        """Share of the members to which a class is the likeliest, (K - 1, z, y, x) without background.

        Where a class and the background are equally likely, it is the background.
        """
        return self._votes.value.cpu().numpy()

    def uncertainty(self, fused: NDArray[np.float32]) -> NDArray[np.float32]:
        """The ensemble's entropy, and the part of it that comes from members that differ.

        The latter is the mutual information of label and member, also known as BALD or the generalised
        Jensen-Shannon divergence: the entropy of the members' mean minus the mean of their entropies
        (Houlsby et al. 2011, arXiv:1112.5745). The members' mean is that of their softmax, however they
        are fused. Both are divided by log K.

        Args:
            fused: (K, z, y, x), what the ensemble says.

        Returns:
            (2, z, y, x), in the order of `MAPS`.
        """
        total = entropy(torch.from_numpy(fused))
        between = entropy(self._softmax.value) - self._entropy.value
        return torch.stack([total, between.clamp_min(0).cpu()]).numpy()
