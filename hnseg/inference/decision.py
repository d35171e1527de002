"""How probabilities become labels: a recipe's rules, and the vote of each voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from hnseg.errors import HnsegError

Rule = Literal["half", "argmax"]
Fusion = Literal["flat", "authors"]
WayBack = Literal["probabilities", "labels"]
Cover = Literal["one", "all"]
Fallback = Literal["chain", "fail"]

# What rules with numbers may be.
_NUMBERS = {
    "weights": "a number of 0 or more for each model, {MODEL: NUMBER}",
    "thresholds": "a probability for each class, {CLASS: NUMBER}",
    "min_component_ml": "ml, 0 or more, or {CLASS: ML}",
    "node_suv_peak": "an SUV of 0 or more",
}
_BY_NAME_ONLY = ("weights", "thresholds")


@dataclass(frozen=True)
class Decision:
    """The rules that a bundle carries, `decision` of its last stage's cards.

    Args:
        fusion: `flat` means the members' probabilities; `authors` as `hnseg.inference.fusion` says.
        weights: Of a model's members under `flat`, 1 where not named; 0 leaves them out.
        rule: As for `decide`.
        thresholds: By class, as for `decide`; read under `argmax` alone.
        way_back: What is brought to the CT's grid: `probabilities`, linearly, to be decided there, or
            `labels` decided on the stage's grid, by nearest neighbour.
        min_component_ml: Smallest component that stays, ml; one number or by class.
        node_suv_peak: GTVn components with a lower SUVpeak are dropped; None or 0 drops none.
        mirror: Average over mirrorings in the last stage.
        cover: `one` cube, or `all` that the coarse lesions need.
        fallback: Where a stage finds nothing, `chain` looks somewhere sensible and `fail` ends the case.
    """

    fusion: Fusion = "flat"
    weights: Mapping[str, float] = field(default_factory=dict)
    rule: Rule = "half"
    thresholds: Mapping[str, float] = field(default_factory=dict)
    way_back: WayBack = "probabilities"
    min_component_ml: float | Mapping[str, float] = 0.0
    node_suv_peak: float | None = None
    mirror: bool = False
    cover: Cover = "one"
    fallback: Fallback = "chain"

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any], classes: Sequence[str]) -> Decision:
        """Reads a card's rules; keys that are absent mean the defaults.

        Args:
            entries: The card's `decision`.
            classes: Names that rules by class may use.

        Raises:
            HnsegError: An unknown key, choice or class, or no number where one is needed.
        """
        hints = get_type_hints(cls)
        for key, value in entries.items():
            if key not in hints:
                raise HnsegError(f"decision.{key} is unknown; choose among {', '.join(hints)}")
            choices = get_args(hints[key])
            if choices and isinstance(choices[0], str) and value not in choices:
                raise HnsegError(f"decision.{key}={value} is unknown; choose {' or '.join(choices)}")
            _check_numbers(key, value)
        decision = cls(**entries)
        for key in ("thresholds", "min_component_ml"):
            named = getattr(decision, key)
            for name in set(named if isinstance(named, Mapping) else ()) - set(classes):
                raise HnsegError(f"decision.{key}: no class {name}; choose among {', '.join(classes)}")
        return decision

    @property
    def placing(self) -> Decision:
        """The rules for what only places the next stage's ROI: the likeliest class, as it comes."""
        return Decision(self.fusion, self.weights, rule="argmax", fallback=self.fallback)

    def floors(self, classes: Sequence[str]) -> list[float]:
        """The smallest component that stays, ml, class by class."""
        floor = self.min_component_ml
        return [floor.get(name, 0.0) if isinstance(floor, Mapping) else floor for name in classes]

    def labels(self, foreground: NDArray[np.float32], classes: Sequence[str]) -> NDArray[np.uint8]:
        """`decide` by these rules, for a stage's classes in the order of their labels."""
        bars = [self.thresholds.get(name, 0.0) for name in classes]
        return decide(foreground, self.rule, bars if self.rule == "argmax" else None)


def is_amount(value: Any) -> bool:
    """Whether it is a finite number of 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _check_numbers(key: str, value: Any) -> None:
    """Refuses a rule that would fail only when the first mask is decided."""
    if key == "mirror" and not isinstance(value, bool):
        raise HnsegError(f"decision.mirror={value}: choose true or false")
    if key not in _NUMBERS or (key == "node_suv_peak" and value is None):
        return
    named = isinstance(value, Mapping)
    misplaced = key == "node_suv_peak" if named else key in _BY_NAME_ONLY
    if misplaced or not all(map(is_amount, value.values() if named else [value])):
        raise HnsegError(f"decision.{key}={value}: give {_NUMBERS[key]}")


def decide(
    foreground: NDArray[np.float32], rule: Rule, thresholds: Sequence[float] | None = None
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
