"""The runs under a folder: how far each is, and in what two of them differ."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from hnseg.errors import HnsegError
from hnseg.files import is_locked
from hnseg.training.run_folder import MACHINE, DamagedRunError, RunFolder, differing_keys, read_json


@dataclass(frozen=True)
class Run:
    """What a run's folder says of it.

    Attributes:
        path: The folder.
        stage: Of the cascade.
        model: Its network.
        arm: Stage, model and variant in one word.
        fold: Number or `all`.
        state: `failed` where an error ended it, `stopped` where nothing trains and nothing is finished,
            `damaged` where a file cannot be read.
        epoch: Epochs behind it.
        epochs: Epochs in all.
        best: val/dice of best.ckpt, None before the first validation.
        seconds_left: To its end, or that it would still take; None before its first epoch.
        damage: What cannot be read, and what to do.
    """

    path: Path
    stage: str
    model: str
    arm: str
    fold: str
    state: Literal["finished", "running", "failed", "stopped", "damaged"]
    epoch: int
    epochs: int
    best: float | None
    seconds_left: float | None
    damage: str | None = None

    @classmethod
    def read(cls, path: Path) -> Run:
        """Reads a run's folder, which another process may be writing.

        Raises:
            HnsegError: No run lies there.
            DamagedRunError: A file of it cannot be read.
        """
        folder, config = RunFolder(path), read_config(path)
        progress = read_json(folder.progress, "seconds") if folder.progress.exists() else {}
        epoch, epochs = progress.get("epoch", 0), config["training"]["epochs"]
        state = _state(folder)
        left = (epochs - epoch) * progress["seconds"] if progress else None
        if state == "finished":
            epoch, left = epochs, 0.0
        elif state == "running" and left is not None:
            left = max(0.0, left - (time.time() - folder.progress.stat().st_mtime))
        return cls(
            path,
            config["stage"]["name"],
            config["model"]["name"],
            config["arm"],
            str(config["fold"]),
            state,
            epoch,
            epochs,
            _scores(path)["val/dice"] if state == "finished" else progress.get("best"),
            left,
        )

    @classmethod
    def damaged(cls, path: Path, damage: str) -> Run:
        """A run of which its place alone is known: .../ARM/fold_K."""
        fold = path.name.removeprefix("fold_")
        return cls(path, "", "", path.parent.name, fold, "damaged", 0, 0, None, None, damage)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"path": str(self.path)}


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a folder.

    Raises:
        HnsegError: No run lies there.
        DamagedRunError: Its configuration cannot be read.
    """
    file = path / "config.json"
    config = read_json(file) if file.is_file() else None
    if not isinstance(config, dict) or not {"arm", "fold", "stage", "model", "training"} <= config.keys():
        raise HnsegError(f"{path}: no run lies there; give a folder that train.py wrote (see hnseg runs)")
    return config


def find_runs(root: Path, *, strict: bool = True) -> list[Run]:
    """All runs under a folder, by folder and fold.

    Args:
        root: The folder.
        strict: Whether a run with a file that cannot be read is refused; else it is `damaged`.

    Raises:
        HnsegError: No such folder.
        DamagedRunError: See `strict`.
    """
    if not root.is_dir():
        raise HnsegError(f"{root}: no such folder; give the one that train.py writes to (runs=...)")
    runs = []
    for path in _run_folders(root):
        try:
            runs.append(Run.read(path))
        except DamagedRunError as error:
            if strict:
                raise
            runs.append(Run.damaged(path, str(error)))
    return sorted(runs, key=lambda run: (run.path.parent, run.fold.zfill(9)))


def compare_runs(a: Path, b: Path) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[float, float]], int]:
    """What differs between two runs, or two arms of which several folds were run.

    Returns:
        Settings that differ, {key: (of a, of b)}, `split.json` for folds that do; scores that both have,
        means over the finished folds that both have; and how many folds these are.

    Raises:
        HnsegError: No run lies in one of them, several of one fold do, or they share no fold.
        DamagedRunError: A file of theirs cannot be read.
    """
    of_a, of_b = _by_fold(a), _by_fold(b)
    if len(of_a) == len(of_b) == 1:  # two runs, whatever their folds
        pairs = [(*of_a.values(), *of_b.values())]
    else:
        pairs = [(of_a[fold], of_b[fold]) for fold in of_a if fold in of_b]
    if not pairs:
        raise HnsegError(f"{a} and {b} have no fold in common; compare single runs (fold_K)")
    ours, theirs = (read_config(run.path) | _folds(run.path) for run in pairs[0])
    differing = {
        key: pair for key, pair in differing_keys(ours, theirs).items() if not key.startswith(MACHINE)
    }
    finished = [pair for pair in pairs if all(run.state == "finished" for run in pair)]
    scores = [tuple(_scores(run.path) for run in pair) for pair in finished]
    shared = (
        [key for key in scores[0][0] if all(key in one for pair in scores for one in pair)] if scores else []
    )
    means = {key: (fmean(a[key] for a, _ in scores), fmean(b[key] for _, b in scores)) for key in shared}
    return differing, means, len(finished)


def _folds(path: Path) -> dict[str, Any]:
    """The hash of a run's folds: a cohort that grew is split otherwise under the same settings."""
    split = RunFolder(path).split
    return {split.name: read_json(split, "hash")["hash"]} if split.exists() else {}


def _scores(path: Path) -> dict[str, float]:
    return read_json(path / "score.json", "val/dice")


def _by_fold(path: Path) -> dict[str, Run]:
    if (path / "config.json").exists():
        run = Run.read(path)
        return {run.fold: run}
    runs = find_runs(path)
    if not runs:
        raise HnsegError(f"{path}: no run lies there; give a folder that train.py wrote (see hnseg runs)")
    by_fold = {run.fold: run for run in runs}
    if len(by_fold) < len(runs):
        raise HnsegError(f"{path}: holds runs of several arms; give the folder of one (see hnseg runs)")
    return by_fold


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders with a run, not looking into them."""
    for folder, below, files in os.walk(root):
        if "config.json" not in files:
            continue
        try:
            read_config(Path(folder))
        except DamagedRunError:
            pass
        except HnsegError:  # another program's file
            continue
        below.clear()
        yield Path(folder)


def _state(folder: RunFolder) -> Literal["finished", "running", "failed", "stopped"]:
    if is_locked(folder.path):
        return "running"
    if folder.finished:
        return "finished"
    return "failed" if folder.failure.exists() else "stopped"
