"""What a recipe may say, refused before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnseg.errors import HnsegError
from hnseg.inference.decision import Decision

_LESIONS = ("GTVp", "GTVn")


def check_decision(recipe: Mapping[str, Any]) -> None:
    """Refuses rules of a recipe, from probabilities to a mask, that would be misunderstood.

    Raises:
        HnsegError: A rule that does not exist, or is not what it may be.
    """
    try:
        Decision.from_dict(decision_rules(recipe), _LESIONS)
    except HnsegError as error:
        raise HnsegError(f"recipe.{error}") from error


def decision_rules(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's rules from probabilities to a mask, as a card carries them."""
    return {**recipe["decision"], "cover": recipe["cover"], "fallback": recipe["fallback"]}


def check_window(recipe: Mapping[str, Any], stage: str, cte: bool) -> None:
    """Refuses CT in HU and PET in SUV where the input chain needs them between 0 and 1.

    Raises:
        HnsegError: No window, though the head crop is windowed, or enhancement takes powers of [0, 1].
    """
    unscaled = recipe["source"] == "head_crop" or recipe["pet"] == "raw"
    if cte and unscaled and recipe["enhance"]["pet"] and stage not in ("head", *recipe["minmax_again"]):
        raise HnsegError(
            f"recipe.enhance.pet: PET is not in [0, 1] in stage={stage}; set recipe.enhance.pet=[]"
        )
    if recipe["ct_window"]:
        return
    if stage != "head" and recipe["source"] == "head_crop":
        raise HnsegError("recipe.ct_window=null: the head crop is windowed; set recipe.source=study for HU")
    if cte and stage not in recipe["minmax_again"]:
        raise HnsegError(
            "recipe.ct_window=null with cte=true: the powers are of CT in [0, 1], not of HU; set a window, "
            "or cte=false"
        )
