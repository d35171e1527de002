"""Networks that are built once and filled with one member's weights after the other's."""

from __future__ import annotations

import json
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor, nn

from hnseg.models.member import Member


class Networks:
    """One network for each kind, however many members of it there are.

    Building a network, drawing its first weights and laying it out takes longer than reading its weights.
    Threads that share them hold `lock` for as long as they use what they were given.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.lock = device, Lock()
        self._networks: dict[str, nn.Module] = {}
        self._holds: dict[str, Member] = {}

    def remark(self, member: Member) -> str:
        """What to know of how a member was run; mostly nothing."""
        return ""

    def exact(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network in float32, where no autocast says otherwise; as for a call."""
        return self(member)

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network with its weights, valid until the next call.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        kind = json.dumps(member.card["network"], sort_keys=True)
        if kind not in self._networks:
            network = member.network().to(self.device)
            self._networks[kind] = network.to(memory_format=torch.channels_last_3d)
        if self._holds.get(kind) is not member:
            self._holds.pop(kind, None)  # weights that fail to load leave a mixture
            member.load_into(self._networks[kind])
            self._holds[kind] = member
        return self._networks[kind]
