"""What Lightning is told of a team."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from hnseg.models.module import SegmentationModule
from hnseg.training.team import Team


class TeamEnvironment(ClusterEnvironment):
    """The place of a process whose team has met already.

    Args:
        team: Of this process.
    """

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    @property
    def creates_processes_externally(self) -> bool:
        """Nothing is left to be started."""
        return True

    @property
    def main_address(self) -> str:
        """Not asked for any more."""
        raise NotImplementedError

    @property
    def main_port(self) -> int:
        """Not asked for any more."""
        raise NotImplementedError

    @staticmethod
    def detect() -> bool:
        """It is given, never found."""
        return False

    def world_size(self) -> int:
        """Processes."""
        return self.team.size

    def set_world_size(self, size: int) -> None:
        """Stays as it is."""

    def global_rank(self) -> int:
        """Of this process."""
        return self.team.rank

    def set_global_rank(self, rank: int) -> None:
        """Stays as it is."""

    def local_rank(self) -> int:
        """On its machine."""
        return self.team.local_rank

    def node_rank(self) -> int:
        """Of its machine."""
        return self.team.node


class EndAtOnce(L.Callback):
    """Lets SIGTERM end a member of a team as SIGKILL would; the checkpoints on disk are whole.

    Lightning would let the members tell each other of it before every batch, and wait for the GPU to do so.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the place of Lightning's handling, which has begun by now."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loop = trainer.fit_loop.epoch_loop
        assert hasattr(loop, "_broadcast_sigterm_tensor")
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def team_options(team: Team) -> dict[str, Any]:
    """How a team trains, in Lightning's words: gradients are the means of all members' own."""
    if team.size == 1:
        return {"devices": 1}
    return {
        "devices": team.local_size,
        "num_nodes": team.nodes,
        "strategy": DDPStrategy(gradient_as_bucket_view=True),
        "use_distributed_sampler": False,  # the data module deals the samples out
    }


def team_plugins(team: Team) -> list[ClusterEnvironment]:
    """Where a team has come from; of one process Lightning finds it out by itself."""
    return [TeamEnvironment(team)] if team.size > 1 else []


def freeze_idle(module: SegmentationModule, channels: int, patch: Sequence[int]) -> None:
    """Takes the gradients off weights that the loss does not depend on, which a team would wait for.

    In nnU-Net's deep supervision those are of the head of the lowest resolution. They stay as they are
    anyway; asking for them in every step would have the GPU waited for.

    Args:
        module: Its network is changed in place.
        channels: Of the input.
        patch: Its shape (z, y, x).
    """
    network = deepcopy(module.network).to("meta").train()  # shapes without numbers
    logits = network(torch.empty(1, channels, *patch, device="meta"))
    loss = deepcopy(module.loss).to("meta")(logits, torch.zeros(1, *patch, dtype=torch.long, device="meta"))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    trained = [weight for weight in module.network.parameters() if weight.requires_grad]
    for weight, gradient in zip(trained, gradients, strict=True):
        weight.requires_grad_(gradient is not None)
