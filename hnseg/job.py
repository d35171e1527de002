"""From a composed configuration, as plain lists and numbers, to what a job is: stage, input chain, card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from hnseg.config import Node, build
from hnseg.data.augment import Compose, RandomHeadCut
from hnseg.data.intensity import InputSpec, Normalise
from hnseg.data.sampling import Sampling
from hnseg.imaging.stage import Stage
from hnseg.preflight import padding

Config = dict[str, Any]


def make_stage(config: Config) -> Stage:
    """The stage with what the recipe says of its place: the head crop's corner, the coarse ROI's margin."""
    stage, recipe = Stage.from_dict(config["stage"]), config["recipe"]
    if stage.name == "head":
        return replace(stage, lateral=recipe["head_crop"])
    if stage.name == "coarse":
        return stage.widened(recipe["coarse"]["margin_mm"])
    return stage


def make_input(config: Config, stage: Stage) -> InputSpec:
    """The input chain of a stage and model under a recipe, without the constants of a fingerprint."""
    recipe = config["recipe"]
    # The head stage's own grid is the head crop: it is sampled from the study.
    source: Literal["study", "head_crop"] = "study" if stage.name == "head" else recipe["source"]
    window = recipe["ct_window"] and tuple(recipe["ct_window"])
    # Told only where it is used, so that studies prepared once serve every window.
    crop = {"ct_window": window} if source == "head_crop" else {}
    sampling = Sampling(source, recipe["outside"], **crop)
    modalities = ("ct",) if stage.name == "head" else ("ct", "pet")
    scheme = recipe["normalise"]
    powers = {name: tuple(recipe["enhance"][name]) for name in ("ct", "pet")}
    count = {name: 1 + len(powers[name]) * config["cte"] for name in modalities}
    channels = [scheme[name] for name in modalities for _ in range(count[name])]
    return InputSpec(
        modalities=modalities,
        sampling=sampling,
        ct_window=window if source == "study" else None,
        ct_range=tuple(recipe["ct_range"]),
        cte=config["cte"],
        pet=recipe["pet"] if source == "study" else "raw",
        pet_upper=recipe["pet_upper"],
        roi_minmax=stage.name in recipe["minmax_again"],
        normalise=tuple(Normalise(one) for one in channels),
        pad_to=padding(config["training"]["patch"], stage.shape),
        ct_powers=powers["ct"],
        pet_powers=powers["pet"],
        coordinates=recipe["coordinates"],
    )


def jitter_mm(config: Config, stage: Stage) -> float:
    """How far the recipe shifts a stage's ROI at random in training, along each axis."""
    key = {"lesions": "roi", "below_head": "coarse"}.get(stage.placement)
    return float(config["recipe"][key]["jitter_mm"]) if key else 0.0


def scan_augment(config: Config, stage: Stage) -> Compose | None:
    """What training does to scans before they become channels; None if nothing is.

    The head stage sees scans without a head as often as `recipe.cut_head` says.
    """
    named = config["scan_augment"].items()
    transforms = {name: build(Node(**node), f"scan_augment.{name}") for name, node in named}
    if stage.name == "head" and config["recipe"]["cut_head"]:
        transforms = {"cut_head": RandomHeadCut(p=config["recipe"]["cut_head"]), **transforms}
    return Compose(transforms) if transforms else None


def describe(config: Config, stage: Stage, spec: InputSpec, **provenance: Any) -> Config:
    """What a checkpoint must say for its network to be run: its card.

    Args:
        config: The composed configuration.
        stage: Of `make_stage`.
        spec: The input chain with its constants.
        provenance: Where the network comes from: split, trained_on, fingerprint.
    """
    recipe, model = config["recipe"], config["model"]
    return {
        "name": f"{config['arm']}_fold_{config['fold']}",
        "model": model["name"],
        "fold": config["fold"],
        "stage": stage.to_dict(),
        "input": spec.to_dict(),
        "network": {
            "in_channels": spec.channels,
            "out_channels": len(stage.classes) + 1,
            **({"gate": True} if model["gating"] else {}),
            **model["settings"],
        },
        "patch": config["training"]["patch"],
        "window": model["window"],
        "recipe": recipe["name"],
        "decision": {**recipe["decision"], "cover": recipe["cover"], "fallback": recipe["fallback"]},
        **provenance,
    }
