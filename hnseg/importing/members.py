"""Imported networks join a bundle as trained ones do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn

from hnseg.app import compose_job
from hnseg.errors import HnsegError
from hnseg.files import restore
from hnseg.job import Config
from hnseg.job_keys import read_job
from hnseg.models.bundle import LISTING, Bundle, Trained, write_bundle
from hnseg.models.nets import build


def are_numbers(values: Any, count: int) -> bool:
    """Whether it is a list of that many finite numbers."""
    listed = isinstance(values, list | tuple) and len(values) == count
    return listed and all(isinstance(one, Real) and math.isfinite(one) for one in values)


def are_bounds(values: Any) -> bool:
    """Whether it is a list of two finite numbers, the lower first."""
    return are_numbers(values, 2) and values[0] < values[1]


def are_lengths(values: Any) -> bool:
    """Whether it is a list of three finite numbers above 0."""
    return are_numbers(values, 3) and min(values) > 0


def are_sides(values: Any) -> bool:
    """Whether it is a list of three whole numbers above 0."""
    return are_lengths(values) and all(isinstance(side, Integral) for side in values)


def are_names(values: Any) -> bool:
    """Whether it is a list of texts."""
    return isinstance(values, list | tuple) and all(isinstance(one, str) for one in values)


# Words that begin so: CT, CTAC, PET_sqrt, SUVbw; but no PTV, which is a contour.
_MODALITIES = {"CT": re.compile(r"(?<![a-z])ct"), "PET": re.compile(r"(?<![a-z])(pet|suv|pt(?![a-z]))")}


def misplaced(told: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a name that is among the wanted ones, however it is spelt, stands in another's place."""
    places = {name.lower(): n for n, name in enumerate(wanted)}
    return any(places.get(name.lower(), n) != n for n, name in enumerate(told))


def swapped(told: Sequence[str], shown: Sequence[str]) -> bool:
    """Whether a channel is named after PET where hnseg shows CT, or the other way round.

    Args:
        told: Names of the channels, whoever gave them.
        shown: As `hnseg.data.intensity.InputSpec.channel_names`, as many.
    """
    pairs = zip(told, shown, strict=True)
    return any(set(map(_modality, pair)) == set(_MODALITIES) for pair in pairs)


def _modality(name: str) -> str | None:
    """CT or PET; None where a name is neither's, or both's."""
    found = [modality for modality, word in _MODALITIES.items() if word.search(name.lower())]
    return found[0] if len(found) == 1 else None


def compose(model: str, overrides: Sequence[str]) -> Config:
    """The configuration of a command's overrides, around a network of the folder's kind.

    Args:
        model: What the folder holds.
        overrides: As for train.py.

    Raises:
        HnsegError: Overrides that do not fit, or that ask for another kind of network.
    """
    chosen = [] if any(override.startswith("model=") for override in overrides) else [f"model={model}"]
    config = read_job(compose_job([*chosen, *overrides]))
    default = read_job(compose_job([f"model={model}"]))["model"]["settings"]["_target_"]
    if config["model"]["settings"]["_target_"] != default:
        raise HnsegError(f"model={config['model']['name']}: the folder holds model={model}; leave it out")
    return config


def add_members(out: Path, trained: Iterable[Trained]) -> list[str]:
    """Makes a bundle, or extends the one that is there; whole or not at all.

    Args:
        out: The bundle.
        trained: Card and network of each new member; only one is held at a time.

    Returns:
        The names of the new members.

    Raises:
        HnsegError: The bundle has a member of that name, or its rules and the new ones' clash.
    """
    restore(out)
    kept = Bundle.load(out).members if (out / LISTING).exists() else ()
    return write_bundle(chain((member.loaded() for member in kept), trained), out)[len(kept) :]


@contextmanager
def reading(what: str, maker: str) -> Iterator[None]:
    """Tells in a line of whatever a foreign file has that its maker would not have written.

    Args:
        what: The files, and `are`.
        maker: Who writes such files.

    Raises:
        HnsegError: The block stumbled over their content.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise HnsegError(
            f"{what} not as {maker} writes them ({_brief(error)}); copy the folder again"
        ) from error


def filled(card: dict[str, Any], weights: Any, checkpoint: Path, plan: str) -> nn.Module:
    """The network that a card describes, with a checkpoint's weights.

    Args:
        card: The member's.
        weights: What the checkpoint has as such.
        checkpoint: For messages.
        plan: Where the description was read.

    Raises:
        HnsegError: It describes no network, or the weights are another's.
    """
    try:
        network = build(**card["network"])
        network.get_submodule("network").load_state_dict(weights)
    except Exception as error:  # the libraries assert, divide and index without a word about settings
        raise HnsegError(
            f"{checkpoint}: not the network of {plan} ({_brief(error)}); copy the folder again"
        ) from error
    return network


def _brief(error: Exception) -> str:
    """Its kind and the beginning of its text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
