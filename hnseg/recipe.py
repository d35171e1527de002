"""What a recipe may say, refused before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnseg.errors import HnsegError
from hnseg.inference.decision import Decision

_SCHEMES = ("zscore", "ct", "range", "sigmoid", "cohort", "rescale", "none")  # of hnseg.data.normalise
# What a recipe's keys may be; its decision is checked by the code that carries it out.
_CHOICES = {
    "pet": ("minmax", "suv", "raw"),
    "source": ("study", "head_crop"),
    "outside": ("air", "minus_one"),
    "head_crop": ("body", "corner"),
    "checkpoint": ("best", "compare"),
    "roi.train": ("truth", "coarse"),
    "roi.validate": ("truth", "coarse"),
    "normalise.ct": _SCHEMES,
    "normalise.pet": _SCHEMES,
}
_LESIONS = ("GTVp", "GTVn")


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Refuses a recipe that would be misunderstood.

    Raises:
        HnsegError: A choice that does not exist.
    """
    for key, known in _CHOICES.items():
        value: Any = recipe
        for part in key.split("."):
            value = value[part]
        if value not in known:
            raise HnsegError(f"recipe.{key}={value}: choose one of {', '.join(known)}")
    if unknown := set(recipe["minmax_again"]) - {"head", "coarse", "fine"}:
        raise HnsegError(f"recipe.minmax_again={','.join(sorted(unknown))}: name stages (head, coarse, fine)")
    for modality, powers in recipe["enhance"].items():
        if set(powers) - {"square", "cube_root"}:
            raise HnsegError(f"recipe.enhance.{modality}={list(powers)}: choose of square, cube_root")
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
