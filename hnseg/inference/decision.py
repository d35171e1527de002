"""How probabilities become labels: the vote of each voxel, by a recipe's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from hnseg.app import explain
from hnseg.card import Decision
from hnseg.errors import HnsegError


def read_decision(rules: Mapping[str, Any]) -> Decision:
    """The rules that a bundle or a record carries.

    Raises:
        HnsegError: An unknown key, or a value that it cannot have.
    """
    try:
        return Decision(**rules)
    except ValidationError as error:
        raise HnsegError(f"decision.{explain(error)}; export the bundle again") from error


def decide_labels(
    foreground: NDArray[np.float32], rules: Decision, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """`decide` by a bundle's rules, for a stage's classes in the order of their labels."""
    thresholds: Any = rules.thresholds
    of_classes = [thresholds.get(name, 0.0) for name in classes]
    return decide(foreground, rules.rule, of_classes if rules.rule == "argmax" else None)


def decide(
    foreground: NDArray[np.float32],
    rule: Literal["half", "argmax"],
    thresholds: Sequence[float] | None = None,
) -> NDArray[np.uint8]:
    """Chooses a label for every voxel.

    Args:
        foreground: Class probabilities without background, (K, z, y, x); the background has the rest.
        rule: `half` wants at least 0.5, and takes the larger where several pass (paper); `argmax` wants
            more than the background. Between equal classes the first wins.
        thresholds: Under `argmax`, a class that does not reach its own is out of the vote of that voxel: the
            next class has it if that is above the background, the background otherwise.

    Returns:
        Labels (z, y, x): 0 background, 1 the first class, and so on.
    """
    background = 1 - foreground.sum(axis=0)
    if thresholds is not None:
        bars = np.asarray(thresholds, np.float32).reshape(-1, 1, 1, 1)
        foreground = np.where(foreground >= bars, foreground, np.float32(0))
    winner = foreground.argmax(axis=0)
    strongest = np.take_along_axis(foreground, winner[None], axis=0)[0]
    passed = strongest >= 0.5 if rule == "half" else strongest > background
    return np.where(passed, winner + 1, 0).astype(np.uint8)
