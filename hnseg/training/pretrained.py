"""Weights that were learned elsewhere as a training's first: loaded where names and shapes match."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hnseg.errors import HnsegError, few
from hnseg.models.checkpoint import read_foreign_checkpoint

# Where frameworks keep the weights in a checkpoint: Lightning, MONAI and hnseg; nnU-Net; others.
_PLACES = ("state_dict", "network_weights", "model_state_dict", "model", "network", "teacher", "student")
# Parts that names may begin with in the file and not here: `module.`, `network.`, `student.backbone.`, ...
_WRAPPERS = 3
# And here and not in the file, which may hold a bare network or its encoder alone.
_HERE = ("", "network.", "network.encoder.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without running what is pickled in it.

    Args:
        path: Safetensors; or what torch.save wrote: a state dict, or a checkpoint of hnseg, nnU-Net, MONAI or
            Lightning that holds one.

    Raises:
        HnsegError: The file is damaged, holds more than tensors and plain data, or no tensors.
    """
    try:
        read = load_file if path.suffix == ".safetensors" else read_foreign_checkpoint
        stored: Mapping[str, Any] = read(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise HnsegError(f"init_from={path}: cannot be read ({reason}); copy it again") from error
    held = next((stored[key] for key in _PLACES if isinstance(stored.get(key), Mapping)), stored)
    weights = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if not weights:
        raise HnsegError(
            f"init_from={path}: holds no state dict, only {few([str(key) for key in stored]) or 'nothing'}; "
            "save the network's state_dict() alone"
        )
    return weights


def initialise(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> str:
    """Fills a network with the weights that fit; the others stay as they were drawn.

    Prefixes are cut off the file's names, or put before them, in the way that fits most tensors.

    Args:
        network: As `hnseg.models.nets` builds it.
        weights: Of `read_weights`.
        source: Where they come from, for messages.

    Returns:
        A report: how many tensors were filled; what has another shape, is not in the file, or is not in the
        network.

    Raises:
        HnsegError: Not one tensor fits.
    """
    state = network.state_dict()

    def fitting(named: Mapping[str, str]) -> list[str]:
        return [
            ours for ours, name in named.items() if ours in state and state[ours].shape == weights[name].shape
        ]

    ways = product(range(_WRAPPERS + 1), _HERE)
    named = max((_renamed(weights, *way) for way in ways), key=lambda names: len(fitting(names)))
    if not fitting(named):
        raise HnsegError(
            f"init_from={source}: not one tensor fits the network; the file has {few(list(weights))}, "
            f"the network {few(list(state))}"
        )
    with torch.no_grad():
        for name in fitting(named):
            state[name].copy_(weights[named[name]])
    # nnU-Net's decoder holds its encoder: a tensor with two names is filled under either.
    filled = {state[name].data_ptr() for name in fitting(named)}
    empty = [name for name, tensor in state.items() if tensor.data_ptr() not in filled]
    kinds = {
        "other shape": [
            f"{name} {list(weights[named[name]].shape)}, here {list(state[name].shape)}"
            for name in empty
            if name in named
        ],
        "not in the file": [name for name in empty if name not in named],
        "not in the network": [theirs for ours, theirs in named.items() if ours not in state],
    }
    lines = [f"{len(state) - len(empty)} of {len(state)} tensors loaded"]
    lines += [f"  {kind} ({len(names)}): {few(names)}" for kind, names in kinds.items() if names]
    return "\n".join(lines)


def _renamed(weights: Mapping[str, Tensor], wrappers: int, here: str) -> dict[str, str]:
    """Names here → names in the file, whose first parts are cut off and others put before them."""
    return {here + ".".join(name.split(".")[wrappers:]): name for name in weights}
