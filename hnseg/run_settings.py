"""Which settings decide what a run makes, and in which of them two runs differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What does not change the result may differ when a run is taken up again.
_IRRELEVANT = (
    "overwrite",
    "run_dir",
    "runs",
    "data.cache",
    "init_from.path",  # its hash decides
    "trainer.device",
    "augment.device",
    "trainer.threads",
    "trainer.processes",
    "trainer.accumulate",
    "trainer.checkpointing",
    "trainer.compile",
    "data.workers",
    "data.prepare_workers",
    "logger",
)
# Places, which may be written in several ways.
_PLACES = ("data.root", "data.heads", "data.predicted_heads", "data.coarse")
_EPOCHS = "training.epochs"
_FIRST = (_EPOCHS, "data.root")  # others are interpolated of them
# What decides the folds, which split.json holds: where those are the same, it may differ too.
_DEALING = ("data.split", "data.split_seed", "data.exclude", "data.folds")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """What decides a run's result, {dotted key: value}."""
    if not isinstance(config, dict):
        return {prefix: str(Path(config).resolve()) if prefix in _PLACES and config else config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if not name.startswith(_IRRELEVANT):
            flat |= flatten(value, name)
    return flat


def changed(before: Mapping[str, Any], now: Mapping[str, Any], *, same_folds: bool) -> list[str]:
    """The settings that make another run of one that is taken up; more epochs than before do not.

    Args:
        before: The run's, flattened.
        now: Those it is to be taken up with.
        same_folds: Whether the cases are dealt into the same folds, whichever settings say so.
    """
    keys = {key for key in before.keys() | now.keys() if not _lengthens(key, before, now)}
    first = sorted(keys, key=lambda key: (key not in _FIRST, key))
    return [key for key in first if _differs(key, before, now) and not (same_folds and key in _DEALING)]


def longer(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a run is to go on for more epochs than it was begun with; both flattened."""
    return _EPOCHS in before and _EPOCHS in now and before[_EPOCHS] < now[_EPOCHS]


def _lengthens(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a setting says no more than that: the epochs, or the schedule's number of them."""
    told = key == _EPOCHS or key.startswith("optimizer.schedule.")
    return told and longer(before, now) and (before.get(key), now.get(key)) == (before[_EPOCHS], now[_EPOCHS])


def _differs(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a setting has changed; one that is younger than the run was off in it."""
    young_and_off = key not in before and now[key] is False
    return before.get(key) != now.get(key) and not young_and_off
