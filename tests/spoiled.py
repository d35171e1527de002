"""What a parity test's twin must do: fail, and for the right reason."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def must_fail() -> Iterator[None]:
    """The comparison inside runs with one constant of ours changed, and must see it in the values."""
    with pytest.raises(AssertionError, match=r"(?i)not (close|equal|match)"):
        yield
