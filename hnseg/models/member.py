"""One trained network of a bundle: what it is, what it has seen, and how its weights are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hnseg.errors import HnsegError
from hnseg.models.nets import build
from hnseg.models.sides import divisor
from hnseg.stage import Stage

# The key under which a checkpoint says everything needed to run its network.
CARD = "hnseg"
# Card and network of a member.
Trained = tuple[dict[str, Any], nn.Module]


@dataclass(frozen=True)
class Member:
    """One trained network and what it needs to know about its input.

    Args:
        card: The member's description: name, stage, input, network, patch, decision.
        weights: Its safetensors file.
        sha256: Of the weights, as its bundle lists it.
    """

    card: dict[str, Any]
    weights: Path
    sha256: str = ""

    @property
    def stage(self) -> Stage:
        """The stage it was trained for."""
        return Stage.from_dict(self.card["stage"])

    def has_seen(self, case_id: str) -> bool:
        """Whether it was trained on a case; an imported member whose split is not known counts as if."""
        trained_on = self.card["trained_on"]
        return trained_on is None or case_id in trained_on

    def whole(self) -> Member:
        """The same member, shown its stage's whole ROI at once instead of window by window.

        The ROI's sides are rounded up to what the network can be shown.
        """
        network = self.card["network"]
        steps = divisor({"architecture": network["architecture"], "settings": network})
        # The network's axes in terms of ours: its steps go the way back.
        order = self.card.get("axes", {}).get("order", [0, 1, 2])
        ours = [steps[order.index(axis)] for axis in range(3)]
        padded = self.card["input"].get("pad_to") or (0, 0, 0)
        sides = [max(n, pad) for n, pad in zip(self.stage.size[::-1], padded, strict=True)]
        patch = [math.ceil(n / step) * step for n, step in zip(sides, ours, strict=True)]
        # Padded by the input chain rather than as a window, so that coordinates go on where padding begins.
        spec = self.card["input"] | ({"pad_to": patch} if self.card["input"].get("coordinates") else {})
        return replace(self, card={**self.card, "input": spec, "patch": patch})

    def network(self) -> nn.Module:
        """The network in evaluation mode, without its weights."""
        return build(**self.card["network"]).eval()

    def load_into(self, network: nn.Module) -> None:
        """Puts the member's weights into a network of its kind.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        try:
            _fill(network, load_file(self.weights))
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise HnsegError(
                f"{self.weights}: cannot be loaded ({reason}); export the bundle again"
            ) from error

    def loaded(self) -> Trained:
        """Its card, and its network with its weights.

        Raises:
            HnsegError: As for `load_into`.
        """
        network = self.network()
        self.load_into(network)
        return self.card, network


def _fill(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """What safetensors' load_model does, for networks in any memory format too.

    Raises:
        RuntimeError: A tensor is missing, too many or of another shape.
    """
    missing, unexpected = network.load_state_dict(weights, strict=False)
    # nnU-Net's decoder holds its encoder: a tensor with two names is stored under one.
    state = network.state_dict()
    stored = {state[name].data_ptr() for name in weights.keys() & state.keys()}
    if absent := [name for name in missing if state[name].data_ptr() not in stored]:
        raise RuntimeError(f"no {absent[0]} in it")
    if unexpected:
        raise RuntimeError(f"{unexpected[0]} is not the network's")
