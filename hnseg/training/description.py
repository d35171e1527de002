"""What a run is called and made of, told without the machine it runs on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import hnseg
from hnseg.data.splits import CENTRES

PACKAGES = ("torch", "lightning", "monai", "dynamic-network-architectures")
# Settings that name a place, however it is written: folders may bear the name of a hospital or a study.
_DATA = ("root", "heads", "predicted_heads", "coarse", "cache", "split")
_PLACES = {"runs", "run_dir", "init_from.path", *(f"data.{key}" for key in _DATA)}
_CHECKOUT = Path(hnseg.__file__).resolve().parents[1]


def describe_run(config: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """A training's name, group, job type, tags and configuration, in W&B's words.

    Args:
        config: The resolved configuration.
        provenance: What it does not hold: hashes of split and data.
    """
    arm, fold = config["arm"], f"fold_{config['fold']}"
    made_of = {**provenance, "git": git_state(), "versions": versions()}
    return {
        "name": f"{arm}_{fold}",
        "group": config["name"],
        "job_type": arm,
        "tags": [config["stage"]["name"], config["model"]["name"], arm, fold, config["recipe"]["name"]],
        "config": {**told(config), "provenance": made_of},
    }


def versions() -> dict[str, str]:
    """Of Python, hnseg, and the packages that a network's weights depend on."""
    here = {"python": platform.python_version(), "hnseg": hnseg.__version__}
    return here | {name: version(name) for name in PACKAGES}


def git_state(checkout: Path = _CHECKOUT) -> dict[str, Any] | None:
    """Commit of the checkout that the code runs from, and whether tracked files differ from it.

    Returns:
        `commit` and `dirty`; None where the code lies in no checkout of its own.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        # An installed hnseg may lie inside a checkout of something else.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return None
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None


def told(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that a logger is told: no places on this machine, and no case ids."""
    data = {key: value for key, value in config["data"].items() if key != "exclude"}
    return _without_places({**config, "data": data})


def _without_places(config: Any, key: str = "") -> Any:
    """The same settings with `(path)` for what says where on this machine something lies."""
    if isinstance(config, dict):
        return {name: _without_places(value, f"{key}.{name}".lstrip(".")) for name, value in config.items()}
    if isinstance(config, list):
        return [_without_places(value, key) for value in config]
    return "(path)" if isinstance(config, str) and _is_place(key, config) else config


def _is_place(key: str, text: str) -> bool:
    if key == "data.split" and text == CENTRES:
        return False
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return key in _PLACES or absolute or text.startswith(("~", ".."))
