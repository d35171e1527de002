"""Checkpoints and members: weights and a card that describes them; foreign checkpoints without their code."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hnseg.app import explain
from hnseg.card import Card, Stage
from hnseg.errors import HnsegError
from hnseg.models.nets import build, stride_product

# Of cards and bundles; 3: the stage that finds the head is the localiser.
FORMAT = 3
# The key of the card in a checkpoint: everything needed to run its network.
CARD = "hnseg"
# Card and network of a member.
Trained = tuple[Card, nn.Module]


@dataclass(frozen=True)
class Member:
    """One trained network and what it needs to know about its input.

    Args:
        card: Its description.
        weights: Its safetensors file.
        sha256: Of the weights, as its bundle lists it.
    """

    card: Card
    weights: Path
    sha256: str = ""

    @property
    def stage(self) -> Stage:
        """The stage it was trained for."""
        return self.card.stage

    def has_seen(self, case_id: str, ct_digest: str = "") -> bool:
        """Whether it was trained on a case, by id or CT; so counts a member whose split is unknown."""
        card = self.card
        return card.trained_on is None or case_id in card.trained_on or ct_digest in card.trained_on_ct

    def whole(self) -> Member:
        """The same member, with a patch that holds its stage's whole ROI.

        The ROI's sides are rounded up to multiples of the network's stride product.
        """
        card, spec = self.card, self.card.input
        steps = card.axes.shape_from_network(stride_product(card.network))
        sides = [max(n, pad) for n, pad in zip(card.stage.shape, spec.pad_to or (0, 0, 0), strict=True)]
        z, y, x = (math.ceil(n / step) * step for n, step in zip(sides, steps, strict=True))
        # Padded by the input chain rather than as a window, so that coordinates go on where padding begins.
        spec = replace(spec, pad_to=(z, y, x)) if spec.coordinates else spec
        return replace(self, card=replace(card, input=spec, patch=(z, y, x)))

    def network(self) -> nn.Module:
        """The network in evaluation mode, without its weights."""
        return build(**self.card.network).eval()

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


def read_card(content: dict[str, Any], path: Path) -> Card:
    """A card as a checkpoint or bundle holds it.

    Raises:
        HnsegError: An unknown key, or a value that it cannot have.
    """
    try:
        return Card(**{key: value for key, value in content.items() if key != "format"})
    except ValidationError as error:
        raise HnsegError(f"{path}: {explain(error)}; export the bundle again, or train anew") from error


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


# Beyond tensors and plain data, both frameworks write numbers and small arrays of NumPy into their logs: the
# functions and dtypes that unpickle these. The functions' module was renamed in NumPy 2.
_NUMPY: list[Any] = [np.float32(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
_ALLOWED: list[Any] = [np.dtype, np.ndarray]
_ALLOWED += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")]
_ALLOWED += [
    (function, f"numpy.{core}.multiarray.{function.__name__}")
    for core in ("core", "_core")
    for function in _NUMPY
]


def read_foreign_checkpoint(path: Path) -> dict[str, Any]:
    """What torch.save wrote: tensors, plain data and numbers of NumPy; nothing else is built.

    Args:
        path: The file.

    Returns:
        Its dictionary, tensors on the CPU.

    Raises:
        HnsegError: The file is missing, damaged or something else, or asks for a class or function beyond
            those.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise HnsegError(f"{path}: cannot be read ({error.strerror}); check the path and allow it") from error
    except Exception as error:  # a damaged pickle stumbles over anything
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise HnsegError(
                f"{path}: holds {wanted[1]}, which could run code and is not read; save its weights alone "
                "as tensors"
            ) from error
        # torch's own message advises to load the file with its code.
        raise HnsegError(
            f"{path}: is no file of torch.save, or a damaged one; copy it again (from Git LFS: git lfs pull)"
        ) from error
    if not isinstance(stored, dict):
        raise HnsegError(f"{path}: holds {type(stored).__name__}, no checkpoint's dictionary; choose another")
    return stored


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
        content = dict(stored[CARD])
        if (number := content.get("format", 1)) != FORMAT:
            raise HnsegError(
                f"{path}: format {number}, hnseg export reads {FORMAT}; train it again with "
                "overwrite=true, or export it with the hnseg that trained it"
            )
        card = read_card(content, path)
        network = build(**card.network)
        # Lightning's WeightAveraging saves the average in the place of the network's own weights.
        own = stored.get("current_model_state")
        if own is not None and choice != "best":
            card = replace(card, scores={})  # of which of the two, the checkpoint does not say
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
