"""What a setting's value may be, and how a user is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """Values that a key may have.

    Args:
        wanted: The remedy for another value.
        fits: Whether a value is one of them.
    """

    wanted: str
    fits: Callable[[Any], bool]

    def or_value(self, word: str, value: str | None = None) -> Kind:
        """The same or one more value, null by default.

        Args:
            word: How it is written, and what it means.
            value: The value.
        """
        return Kind(f"{self.wanted}, or {word}", lambda given: given == value or self.fits(given))


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are none, though Python's bool is an int."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether it is a whole number of 1 or more."""
    return type(value) is int and value >= 1


def is_amount(value: Any) -> bool:
    """Whether it is a number of 0 or more."""
    return is_number(value) and value >= 0


def one_of(*names: str) -> Kind:
    """One of some words."""
    return Kind(f"choose one of {', '.join(names)}", lambda value: value in names)


def list_of(what: str, fits: Callable[[Any], bool], length: int | None = None) -> Kind:
    """A list whose entries fit.

    Args:
        what: The list is of, and how it is written.
        fits: Whether an entry does.
        length: Of the list; any by default.
    """

    def all_fit(value: Any) -> bool:
        return isinstance(value, list) and length in (None, len(value)) and all(map(fits, value))

    return Kind(f"give a list of {what}", all_fit)


def some_of(*names: str) -> Kind:
    """A list of some words among these; it may be empty."""
    return list_of(f"{', '.join(names)}, or [] for none", lambda value: value in names)


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


SWITCH = Kind("choose true or false", lambda value: isinstance(value, bool))
# A folder may be called 2025; of 3.10 Hydra leaves 3.1.
PATH = Kind(
    "give a path; one that reads as a number is written \"'3.10'\"",
    lambda value: type(value) is int or (isinstance(value, str) and value != ""),
)
COUNT = Kind("give a whole number of 1 or more", is_count)
AMOUNT = Kind("give a number of 0 or more", is_amount)
POSITIVE = Kind("give a number above 0", lambda value: is_number(value) and value > 0)
SHARE = Kind("give a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
BELOW_ONE = Kind("give a number of 0 or more and below 1", lambda value: is_number(value) and 0 <= value < 1)
# What numpy and torch take for the start of their random numbers.
SEED = Kind(
    f"give a whole number from 0 to {2**32 - 1}", lambda value: type(value) is int and 0 <= value < 2**32
)
RISING = Kind(
    "give [LOWER,UPPER]",
    lambda value: (
        isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and value[0] < value[1]
    ),
)
NODE = Kind("give the entries that conf/ has for it", lambda value: isinstance(value, Mapping))
