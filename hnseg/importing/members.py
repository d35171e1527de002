"""Imported networks join a bundle as trained ones do."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from hnseg.files import restore
from hnseg.models.bundle import LISTING, Bundle, Trained, write_bundle


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
