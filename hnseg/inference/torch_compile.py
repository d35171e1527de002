"""Networks that PyTorch compiles at their first case, on request."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hnseg.inference.networks import Networks
from hnseg.models.member import Member
from hnseg.models.translated import Translated


class TorchCompileNetworks(Networks):
    """Networks that `torch.compile` has translated, one translation for each kind and window.

    The logits are those of the network as it is, to within rounding. On a CPU it took 30 s to start and
    gained nothing, where OpenVINO does; on a GPU it has not been measured.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._translated: dict[Callable[[Tensor], Tensor], Translated] = {}

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network with its weights, valid until the next call.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        network = super().__call__(member)
        if network not in self._translated:
            self._translated[network] = Translated(network, member.card["network"]["architecture"])
        return self._translated[network]
