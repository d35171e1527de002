"""What a node of the configuration names, built; or one line on why it cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from hnseg.errors import HnsegError


@contextmanager
def building(key: str) -> Iterator[None]:
    """Tells what a class says of entries that it cannot be built with; decorates functions too.

    Args:
        key: Where they stand.

    Raises:
        HnsegError: In the class's words.
    """
    try:
        yield
    except (InstantiationException, TypeError, ValueError, AssertionError) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(reason, HnsegError):
            raise reason from error
        words = " ".join(str(reason or error).split()) or type(reason).__name__
        raise HnsegError(f"{key} cannot be built: {words}; check its entries") from error


def construct(node: Mapping[str, Any], key: str) -> Any:
    """Builds what a node names, or where it is a `_partial_`, what builds it.

    Args:
        node: With its `_target_`.
        key: Where it stands.

    Raises:
        HnsegError: It cannot be built; of a `_partial_`, when it is called too.
    """
    with building(key):
        made = instantiate(node)
    return building(key)(made) if isinstance(made, partial) else made
