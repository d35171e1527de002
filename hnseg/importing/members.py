"""Imported networks join a bundle as trained ones do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from hnseg.errors import HnsegError
from hnseg.files import restore
from hnseg.models.bundle import LISTING, Bundle, Trained, write_bundle
from hnseg.models.nets import build


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
        network.network.load_state_dict(weights)
    except Exception as error:  # the libraries assert, divide and index without a word about settings
        raise HnsegError(
            f"{checkpoint}: not the network of {plan} ({_brief(error)}); copy the folder again"
        ) from error
    return network


def _brief(error: Exception) -> str:
    """Its kind and the beginning of its text, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
