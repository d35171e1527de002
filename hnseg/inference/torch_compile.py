"""Networks that PyTorch compiles at their first case, on request."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from hnseg.inference.networks import Networks
from hnseg.models.member import Member


class TorchCompileNetworks(Networks):
    """Networks that `torch.compile` has translated, one translation for each kind and window.

    The logits are those of the network as it is, to within rounding. On a CPU it took 30 s to start and
    gained nothing, where OpenVINO does; on a GPU it has not been measured.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._translated: dict[Callable[[Tensor], Tensor], _Translated] = {}

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network with its weights, valid until the next call.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        network = super().__call__(member)
        if network not in self._translated:
            self._translated[network] = _Translated(network, member.card["network"]["architecture"])
        return self._translated[network]


class _Translated:
    """A network that runs translated, or as it is where it cannot be: PyTorch translates at the first use."""

    def __init__(self, network: Callable[[Tensor], Tensor], name: str) -> None:
        self._network, self._name = network, name
        # Windows of one shape follow one another; a translation that fits any shape would be slower.
        self._run: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)

    def __call__(self, image: Tensor) -> Tensor:
        try:
            return self._run(image)
        except torch.OutOfMemoryError:  # as it is, it would take more
            raise
        except Exception as error:
            if self._run is self._network:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = "%s: torch.compile failed (%s); it runs as it is"
            logging.getLogger(__name__).warning(message, self._name, reason)
            self._run = self._network
            return self._network(image)
