"""What each key of a training's configuration may be, whatever the others are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from hnseg.app import explain
from hnseg.errors import HnsegError
from hnseg.kinds import (
    AMOUNT,
    BELOW_ONE,
    COUNT,
    NODE,
    PATH,
    POSITIVE,
    RISING,
    SEED,
    SHARE,
    SWITCH,
    Kind,
    is_count,
    is_number,
    list_of,
    one_of,
    show,
    some_of,
)

_NUMBER = Kind("give a number", is_number)
_SCHEMES = one_of("zscore", "ct", "range", "sigmoid", "cohort", "rescale", "none")  # hnseg.data.normalise
_ROIS = one_of("truth", "coarse")
_POWERS = some_of("square", "cube_root")
_FILE = PATH.or_value("null for none")


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)  # Hydra reads [12] as a number


def _is_side(value: Any) -> bool:
    return is_count(value) or (isinstance(value, list) and len(value) == 3 and all(map(is_count, value)))


_COUNTS = list_of("whole numbers of 1 or more, one for each stage", is_count)
_SIDES = list_of("whole numbers of 1 or more, or [z,y,x], one for each stage", _is_side)
_CLASSES = list_of("names, [GTVp,GTVn]", lambda value: isinstance(value, str))
_PATCH = list_of("whole numbers, [z,y,x]", lambda value: type(value) is int)

_NODES = (
    *("stage", "model", "model.window", "model.settings", "training", "trainer", "data", "logger"),
    *("loss", "loss.loss", "optimizer", "optimizer.step", "optimizer.schedule", "augment", "scan_augment"),
    *("recipe", "recipe.roi", "recipe.coarse", "recipe.enhance", "recipe.normalise", "recipe.decision"),
)
_PATHS = {
    "run_dir": PATH,
    "init_from": _FILE,
    "data.root": _FILE,
    "data.heads": PATH,
    "data.predicted_heads": _FILE,
    "data.coarse": _FILE,
    "data.cache": PATH,
    "data.split": _FILE,
}
# Every training has them. The nodes come first, for the others are in them.
_ALWAYS: dict[str, Kind] = {
    **dict.fromkeys(_NODES, NODE),
    **_PATHS,
    "seed": SEED,
    "cte": SWITCH,
    "overwrite": SWITCH,
    "stage.size": list_of("three whole numbers of 1 or more, [x,y,z]", is_count, 3),
    "stage.spacing": list_of("three numbers of mm above 0, [x,y,z]", POSITIVE.fits, 3),
    "stage.placement": one_of("top_of_scan", "below_head", "lesions", "scan"),
    "stage.classes": Kind(_CLASSES.wanted, lambda value: _CLASSES.fits(value) and value != []),
    "stage.antialias": SWITCH,
    "model.gating": SWITCH,
    "model.window.tiling": one_of("nnunet", "monai"),
    "model.window.overlap": BELOW_ONE,
    # `???` where no conf/stage_model sets it, which check_patch tells.
    "training.patch": Kind(_PATCH.wanted, lambda value: value in (None, "???") or _PATCH.fits(value)),
    "training.batch_size": COUNT,
    "training.epochs": COUNT,
    "training.iterations": COUNT.or_value("null for one pass over the training cases"),
    "training.validate_every": COUNT,
    "training.ema": BELOW_ONE.or_value("null for none"),
    "trainer.threads": COUNT.or_value("null for all cores"),
    "trainer.deterministic": SWITCH,
    "trainer.processes": COUNT.or_value("auto for one on each GPU", "auto"),
    "trainer.accumulate": COUNT,
    "trainer.checkpointing": SWITCH,
    "trainer.compile": SWITCH,
    "data.exclude": list_of("case ids, [CASE,...]", _is_name),
    "data.folds": COUNT,
    "data.split_seed": SEED,
    "data.prepare_workers": COUNT.or_value("null for all cores"),
    "recipe.ct_window": RISING.or_value("null for none"),
    "recipe.ct_range": RISING,
    "recipe.enhance.ct": _POWERS,
    "recipe.enhance.pet": _POWERS,
    "recipe.coordinates": SWITCH,
    "recipe.pet": one_of("minmax", "suv", "raw"),
    "recipe.pet_upper": POSITIVE,
    "recipe.minmax_again": some_of("head", "coarse", "fine"),
    "recipe.normalise.ct": _SCHEMES,
    "recipe.normalise.pet": _SCHEMES,
    "recipe.source": one_of("study", "head_crop"),
    "recipe.outside": one_of("air", "minus_one"),
    "recipe.head_crop": one_of("body", "corner"),
    "recipe.roi.train": _ROIS,
    "recipe.roi.validate": _ROIS,
    "recipe.roi.jitter_mm": AMOUNT,
    "recipe.coarse.margin_mm": AMOUNT,
    "recipe.coarse.jitter_mm": AMOUNT,
    "recipe.cut_head": SHARE,
    "recipe.checkpoint": one_of("best", "compare"),
    "optimizer.clip": AMOUNT.or_value("null for none"),
}
# Some stages, networks, optimisers and losses have them.
_WHERE_THERE: dict[str, Kind] = {
    "stage.top": _NUMBER,
    "model.settings.features": _COUNTS,
    "model.settings.blocks": _COUNTS,
    "model.settings.blocks_down": _COUNTS,
    "model.settings.strides": _SIDES,
    "model.settings.init_filters": COUNT,
    "model.settings.depths": COUNT,
    "model.settings.bias": SWITCH,
    "model.settings.norm_eps": POSITIVE,
    "model.settings.slope": _NUMBER,
    "optimizer.step.lr": AMOUNT,
    "optimizer.schedule.total_iters": COUNT,
    "optimizer.schedule.t_total": COUNT,
    "optimizer.schedule.warmup_steps": AMOUNT,
    "optimizer.schedule.power": AMOUNT,
    "loss.weights": one_of("nnunet", "monai"),
    "loss.loss.squared": SWITCH,
    "loss.loss.background": SWITCH,
    "loss.loss.smooth_top": AMOUNT,
    "loss.loss.smooth_bottom": AMOUNT,
    "augment.transforms": list_of("transforms, or [] for none", lambda value: isinstance(value, Mapping)),
}


def read_job(composed: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain lists and numbers, its paths as text.

    Raises:
        HnsegError: The first key that is not what it may be, or one that refers to what is not there.
    """
    try:
        config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    except InterpolationResolutionError as error:
        raise HnsegError(explain(error)) from error
    _check(config)
    for key in _PATHS:
        node, name = _place(config, key)
        if isinstance(node[name], int):  # of a folder, 2025
            node[name] = str(node[name])
    return config


def _check(config: dict[str, Any]) -> None:
    for key, kind in (_ALWAYS | _WHERE_THERE).items():
        node, name = _place(config, key)
        if name in node and not kind.fits(node[name]):
            raise HnsegError(f"{key}={show(node[name])}: {kind.wanted}")
        if name not in node and key in _ALWAYS:
            raise HnsegError(f"{key} is missing; {kind.wanted}")


def _place(config: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The node that a key is in, and its name there."""
    *path, name = key.split(".")
    for part in path:
        config = config[part]
    return config, name
