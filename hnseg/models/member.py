"""One trained network of a bundle: what it is, what it has seen, and how its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hnseg.errors import HnsegError
from hnseg.models.nets import build
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
