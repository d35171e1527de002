"""What values in foreign files look like: they come from JSON, YAML or NumPy, and may be anything."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


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
