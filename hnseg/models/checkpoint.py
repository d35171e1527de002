"""What a training leaves → a member: the card, and those of the weights that are wanted."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch

from hnseg.errors import HnsegError
from hnseg.models.member import CARD, Trained
from hnseg.models.nets import build

# The best by validation Dice, be it the network's own weights or their average; or what the training ended
# with, which the validation cases had no say in: the network's own weights, or their moving average.
Checkpoint = Literal["best", "last", "ema"]


def checkpoint_file(folder: Path, choice: Checkpoint) -> Path:
    """The file in a run's folder that holds the weights that were chosen."""
    return folder / ("best.ckpt" if choice == "best" else "last.ckpt")


def read_checkpoint(folder: Path, choice: Checkpoint) -> Trained:
    """A member's description, and its network with the weights that were chosen.

    Args:
        folder: A run's.
        choice: Which of its weights.

    Raises:
        HnsegError: The checkpoint is missing or damaged, or has no averaged weights.
    """
    path = checkpoint_file(folder, choice)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        card: dict[str, Any] = stored[CARD]
        network = build(**card["network"])
        # Lightning's WeightAveraging saves the average in the place of the network's own weights.
        own = stored.get("current_model_state")
        if own is not None and choice != "best":
            card = card | {"scores": {}}  # of which of the two, the checkpoint does not say
        prefix, state = "network.", own if own is not None and choice == "last" else stored["state_dict"]
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    except (OSError, EOFError, RuntimeError, UnpicklingError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HnsegError(f"{path}: cannot be read ({reason}); train it again with overwrite=true") from error
    if choice == "ema" and own is None:
        raise HnsegError(
            f"{path}: no averaged weights (it was trained with training.ema=null); "
            "export --checkpoint best or last"
        )
    return card, network
