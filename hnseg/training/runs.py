"""Run folders: begun once, resumed by the same command, overwritten only when asked; and lists of them."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig

from hnseg.card import plain
from hnseg.config import Job
from hnseg.data.splits import Split
from hnseg.errors import HnsegError, few
from hnseg.files import digest_file, is_locked, lock, remove_leftovers, write_json, write_text

# Keys of the machine and of what is logged: they do not change a run's result.
MACHINE = (
    "overwrite",
    "run_dir",
    "runs",
    "data.cache",
    "data.workers",
    "data.prepare_workers",
    "init_from.path",  # the file's digest is compared
    "augment.device",
    "trainer.device",
    "trainer.threads",
    "trainer.processes",
    "trainer.accumulate",
    "trainer.checkpointing",
    "trainer.compile",
    "logger",
)
# A resumed run's cases and folds are compared with split.json, its images and labels with the digest in the
# checkpoint, wherever the data lies now.
_FREE = (*MACHINE, "data")


def record(job: Job) -> dict[str, Any]:
    """What config.json holds: the configuration, the file of conf/ behind each of its groups,
    and the digest of the file that a training begins from."""
    settings: dict[str, Any] = plain(job)
    if HydraConfig.initialized():
        chosen = HydraConfig.get().runtime.choices.items()
        settings["groups"] = {group: file for group, file in chosen if file and "/" not in group}
    if job.init_from is not None:
        if not job.init_from.is_file():
            raise HnsegError(f"init_from={job.init_from}: no such file; give a checkpoint or .safetensors")
        settings["init_from"] = {"path": str(job.init_from), "sha256": digest_file(job.init_from)}
    return settings


def differing_keys(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two nested configurations: {dotted key: (value in a, value in b)}."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return {} if a == b else {prefix: (a, b)}
    differing: dict[str, tuple[Any, Any]] = {}
    for key in sorted(a.keys() | b.keys()):
        differing |= differing_keys(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    return differing


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HnsegError(
            f"{path}: damaged ({error}); put it back, or train anew with overwrite=true"
        ) from error


class RunFolder:
    """What a training leaves on disk.

    `config.json`, `split.json`, `run.id` (which its checkpoints hold too), `best.ckpt`, `last.ckpt`,
    `metrics.csv` and `curves.png`, `train.log` and `score.json`. While it trains, `previous.ckpt` is the
    checkpoint before last.ckpt and `progress.json` says how far it is; `failed.txt` has the traceback of the
    error that ended it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best, self.last, self.previous = (path / f"{name}.ckpt" for name in ("best", "last", "previous"))
        self.config, self.split, self.progress, self.score = (
            path / f"{name}.json" for name in ("config", "split", "progress", "score")
        )
        self.metrics, self.log, self.failure, self._id = (
            path / name for name in ("metrics.csv", "train.log", "failed.txt", "run.id")
        )

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.last.exists() or self.previous.exists()

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self.score.exists()

    @property
    def id(self) -> str:
        """What checkpoints and the W&B run carry; drawn when it began, or by the agent of a W&B sweep."""
        return self._id.read_text()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder while a run trains in it, and keeps the traceback of an error that ends the run.

        Raises:
            HnsegError: The folder cannot be made.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HnsegError(
                f"{self.path}: cannot be made ({error.strerror}); choose another runs=FOLDER"
            ) from error
        try:
            with lock(self.path):
                remove_leftovers(self.path)
                try:
                    yield
                except Exception as error:
                    if self.config.exists() and not self.finished:
                        with suppress(HnsegError):  # it would hide the first
                            write_text(traceback.format_exc(), self.failure)
                    _clear_frames(error)
                    raise
        finally:
            with suppress(OSError):  # a run that was begun is not empty
                for folder in made:
                    folder.rmdir()

    def check(self, config: dict[str, Any], split: Split) -> None:
        """Refuses to resume a run, or to report it as finished, under other settings or on other folds."""
        if not (self.begun or self.finished):
            return
        differing = differing_keys(_read(self.config), config)
        keys = [key for key in differing if not key.startswith((*_FREE, "groups."))]
        if keys:
            groups = [key for key in differing if key.startswith("groups.")]
            # A file that differs says in a word what its keys say in many.
            named = sorted(groups, key="groups.scale".__ne__) or keys
            values = {key.removeprefix("groups."): differing[key] for key in named}
            changes = few([f"{key}={before}, not {now}" for key, (before, now) in values.items()])
            raise HnsegError(
                f"{self.path} holds a run with {changes}; give this one another name=..., or overwrite=true"
            )
        folds = _read(self.split)["folds"]
        if folds != [list(fold) for fold in split.folds]:
            raise HnsegError(
                f"{self.path} holds a run on other folds: {_change(folds, split)}; data.split={self.split} "
                "keeps its folds (data.exclude=[CASE] leaves out what came), overwrite=true starts anew, "
                "another name=... apart"
            )

    def begin(self, config: dict[str, Any], split: Split, *, overwrite: bool = False) -> None:
        """Writes configuration, folds and id of a run; of an interrupted one, what is missing."""
        if overwrite:
            self._clear()
        if not self.begun:
            write_json(config, self.config)
        if not self._id.exists():
            agents = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
            write_text(agents or secrets.token_hex(8), self._id)
        split.write(self.split)
        self.failure.unlink(missing_ok=True)

    def finish(self, scores: dict[str, float]) -> None:
        """Marks the run as finished, with the scores of its best checkpoint."""
        write_json(scores, self.score)
        self.previous.unlink(missing_ok=True)

    def scores(self) -> dict[str, float]:
        """What `finish` wrote."""
        scores: dict[str, float] = _read(self.score)
        return scores

    def _clear(self) -> None:
        """Removes what a run left; other files stay."""
        for name in ("wandb", "tensorboard", "pictures"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        # The configuration goes last: cut off here, the old checkpoints must not pass for another run's.
        logged = (self.score, self.progress, self.metrics, self.log)
        checkpoints = (self.previous, self.last, self.best)
        for path in (*logged, *checkpoints, self._id, self.split, self.config):
            path.unlink(missing_ok=True)


def _change(folds: list[list[str]], split: Split) -> str:
    """Which cases came and which went since the folds were drawn."""
    before, now = ({case_id for fold in dealt for case_id in fold} for dealt in (folds, split.folds))
    changes = [f"{few(sorted(now - before))} came"] if now - before else []
    changes += [f"{few(sorted(before - now))} went"] if before - now else []
    return "; ".join(changes) or "the same cases are drawn in another way (their centres changed?)"


def _clear_frames(error: BaseException | None) -> None:
    """Drops what the frames of an error hold: a sweep keeps its errors to the end, not their tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


State = Literal["finished", "running", "failed", "stopped"]


@dataclass(frozen=True)
class Run:
    """What a run's folder says of it.

    Attributes:
        fold: Number or `all`.
        project: Of W&B.
        state: `failed` where an error ended it, `stopped` where nothing trains and nothing is finished.
        epoch: Epochs behind it.
        best: val/dice of best.ckpt, None before the first validation.
        began: Local time, ISO 8601 (YYYY-MM-DDTHH:MM:SS).
        seconds: That its epochs took, validations included; None before the first is over.
        seconds_left: To its end, or that it would still take; None before its first epoch.
    """

    path: Path
    stage: str
    model: str
    cte: bool
    arm: str
    fold: str
    project: str
    state: State
    epoch: int
    epochs: int
    best: float | None
    began: str
    seconds: float | None
    seconds_left: float | None

    @classmethod
    def read(cls, path: Path) -> Run:
        """Reads a run's folder, which another process may be writing."""
        # By key, not as the typed configuration: runs of other versions are listed and compared too.
        folder, config = RunFolder(path), _read(path / "config.json")
        progress = _read(folder.progress) if folder.progress.exists() else {}
        epoch, epochs = progress.get("epoch", 0), config["training"]["epochs"]
        best, left = progress.get("best"), (epochs - epoch) * progress["seconds"] if progress else None
        began = datetime.fromtimestamp((path / "run.id").stat().st_mtime).isoformat(timespec="seconds")
        state = _state(folder)
        if state == "finished":
            epoch, best, left = epochs, folder.scores()["val/dice"], 0.0
        elif state == "running" and left is not None:
            left = max(0.0, left - (time.time() - folder.progress.stat().st_mtime))
        return cls(
            path,
            config["stage"]["name"],
            config["model"]["name"],
            config["cte"],
            config["arm"],
            str(config["fold"]),
            config["logger"].get("project", "hnseg"),
            state,
            epoch,
            epochs,
            best,
            began,
            epoch * progress["seconds"] if progress else None,
            left,
        )


def _state(folder: RunFolder) -> State:
    if is_locked(folder.path):
        return "running"
    if folder.finished:
        return "finished"
    return "failed" if folder.failure.exists() else "stopped"


def find_runs(root: Path) -> list[Run]:
    """All runs in and under a folder, by folder and fold.

    Raises:
        HnsegError: No such folder, or a run with a damaged file.
    """
    if not root.is_dir():
        raise HnsegError(f"{root}: no such folder; give the one that hnseg train writes to (runs=...)")
    runs = []
    for path, below, files in os.walk(root):
        if {"config.json", "run.id"} <= set(files):
            below.clear()
            runs.append(Run.read(Path(path)))
    return sorted(runs, key=lambda run: (run.path.parent, run.fold.zfill(9), run.path))


Order = Literal["date", "score", "name", "left"]


def sort_runs(runs: Sequence[Run], order: Order) -> list[Run]:
    """Runs, the newest, the best or the soonest ready first; those without a score or time left come last."""

    def place(run: Run) -> float:
        if order == "date":
            return -datetime.fromisoformat(run.began).timestamp()
        if order == "score":
            return math.inf if run.best is None else -run.best
        return run.seconds_left or math.inf

    return list(runs) if order == "name" else sorted(runs, key=place)


def compare_runs(a: Path, b: Path) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[float, float]], int]:
    """What differs between two runs, or two arms of which several folds were run.

    Returns:
        Settings that differ, {key: (of a, of b)}, `split.json` for folds that do; scores that both have,
        means over the finished folds that both have; and how many folds these are.

    Raises:
        HnsegError: No run lies in one of them, several of one fold do, or they share no fold.
    """
    of_a, of_b = _by_fold(a), _by_fold(b)
    if len(of_a) == len(of_b) == 1:  # two runs, whatever their folds
        pairs = [(*of_a.values(), *of_b.values())]
    else:
        pairs = [(of_a[fold], of_b[fold]) for fold in of_a if fold in of_b]
    if not pairs:
        raise HnsegError(f"{a} and {b} have no fold in common; compare single runs (fold_K)")
    ours, theirs = (_settings(run.path) for run in pairs[0])
    differing = {
        key: pair for key, pair in differing_keys(ours, theirs).items() if not key.startswith(MACHINE)
    }
    finished = [pair for pair in pairs if all(run.state == "finished" for run in pair)]
    scores = [[RunFolder(run.path).scores() for run in pair] for pair in finished]
    means = {}
    for key in scores[0][0] if scores else ():
        if all(key in scored for pair in scores for scored in pair):
            means[key] = (
                fmean(first[key] for first, _ in scores),
                fmean(second[key] for _, second in scores),
            )
    return differing, means, len(finished)


def _settings(path: Path) -> dict[str, Any]:
    """A run's configuration and the hash of its folds, which may differ under the same settings."""
    folder = RunFolder(path)
    settings: dict[str, Any] = _read(folder.config)
    return settings | {folder.split.name: _read(folder.split)["hash"]}


def _by_fold(path: Path) -> dict[str, Run]:
    runs = find_runs(path)
    if not runs:
        raise HnsegError(f"{path}: no run lies there; give a folder that hnseg train wrote (see hnseg runs)")
    by_fold = {run.fold: run for run in runs}
    if len(by_fold) < len(runs):
        raise HnsegError(f"{path}: holds runs of several arms; give the folder of one (see hnseg runs)")
    return by_fold
