"""One folder a run: begun once, resumed by the same command, never overwritten unless asked."""

from __future__ import annotations

import json
import secrets
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from hnseg.data.splits import Split
from hnseg.errors import HnsegError, few
from hnseg.files import lock, remove_leftovers, replacing

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


class DamagedRunError(HnsegError):
    """A file of a run that cannot be read."""


State = Literal["fresh", "interrupted", "finished"]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as {dotted key: value}."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing_keys(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations: {dotted key: (value in a, value in b)}, sorted."""
    ours, theirs = flatten(a), flatten(json.loads(json.dumps(b)))
    keys = sorted(ours.keys() | theirs.keys())
    pairs = {key: (ours.get(key), theirs.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


class RunFolder:
    """What a training leaves on disk: config.json, split.json, best.ckpt, last.ckpt, metrics.csv, score.json.

    While it trains, previous.ckpt is the checkpoint before last.ckpt, progress.json says how far it is
    (`hnseg.training.callbacks.ProgressFile`); failed.txt has the traceback of the error that ended it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best, self.last, self.previous = (path / f"{name}.ckpt" for name in ("best", "last", "previous"))
        self.config, self.split, self.progress = (
            path / f"{name}.json" for name in ("config", "split", "progress")
        )
        self.failure = path / "failed.txt"

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._score.exists()

    @property
    def id(self) -> str:
        """What checkpoints of this run carry; drawn when it began."""
        return self._id.read_text()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder while a run trains in it, and keeps the traceback of an error that ends the run.

        Raises:
            HnsegError: Another process trains there, or the folder cannot be written.
        """
        with _writable():
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with lock(self.path):
                remove_leftovers(self.path)
                try:
                    yield
                except Exception as error:
                    if self.config.exists() and not self.finished:
                        with suppress(HnsegError):  # it would hide the first
                            _write(self.failure, traceback.format_exc())
                    _clear_frames(error)
                    raise
        finally:
            with suppress(OSError):
                self.path.rmdir()  # where nothing was begun

    def look(self, config: dict[str, Any], *, split: Split | None = None, overwrite: bool = False) -> State:
        """The state of the run with this configuration and these folds; changes nothing.

        Returns:
            `fresh`, `interrupted` (resume from `last`) or `finished`.

        Raises:
            HnsegError: The folder holds a run with other settings or on other folds.
        """
        begun = self.last.exists() or self.previous.exists()
        if overwrite or not (begun or self.finished):
            return "fresh"
        stored = read_json(self.config) if self.config.exists() else config
        for key, (before, now) in differing_keys(stored, config).items():
            if not key.startswith(_FREE):
                raise HnsegError(
                    f"{self.path} holds a run with {key}={before}, not {now}; give this one "
                    "another name=..., or overwrite=true"
                )
        folds = read_json(self.split)["folds"] if self.split.exists() else None
        if split is not None and folds is not None and folds != [list(fold) for fold in split.folds]:
            raise HnsegError(
                f"{self.path} holds a run on other folds: {_change(folds, split)}; data.split={self.split} "
                "keeps its folds (data.exclude=[CASE] leaves out what came), overwrite=true starts anew, "
                "another name=... apart"
            )
        return "finished" if self.finished else "interrupted"

    def begin(self, config: dict[str, Any], *, split: Split | None = None, overwrite: bool = False) -> None:
        """Writes configuration, folds and id of a run; of an interrupted one, what is missing.

        Raises:
            HnsegError: The folder cannot be written.
        """
        with _writable():
            if overwrite:
                self._clear()
            if not (self.last.exists() or self.previous.exists()) or not self.config.exists():
                _write_json(self.config, config)
            if not self._id.exists():
                _write(self._id, secrets.token_hex(8))
            if split is not None:
                split.write(self.split)
            self.failure.unlink(missing_ok=True)

    def finish(self, scores: dict[str, float]) -> None:
        """Marks the run as finished, with the scores of its best checkpoint."""
        _write_json(self._score, scores)
        self.previous.unlink(missing_ok=True)

    def scores(self) -> dict[str, float]:
        """What `finish` wrote."""
        scores: dict[str, float] = read_json(self._score)
        return scores

    @property
    def _score(self) -> Path:
        return self.path / "score.json"

    @property
    def _id(self) -> Path:
        return self.path / "run.id"

    def _clear(self) -> None:
        """Removes what a run left; other files stay."""
        for name in ("wandb", "tensorboard", "pictures"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        # The configuration goes last: cut off here, the old checkpoints must not pass for another run's.
        metrics = self.path / "metrics.csv"
        checkpoints = (self.previous, self.last, self.best)
        for path in (self._score, self.progress, metrics, *checkpoints, self._id, self.split, self.config):
            path.unlink(missing_ok=True)


def _change(folds: list[list[str]], split: Split) -> str:
    """Which cases came and which went since the folds were drawn."""
    before, now = ({case_id for fold in one for case_id in fold} for one in (folds, split.folds))
    parts = {"came": sorted(now - before), "went": sorted(before - now)}
    changes = [f"{few(ids)} {what}" for what, ids in parts.items() if ids]
    return "; ".join(changes) or "the same cases are drawn in another way (their centres changed?)"


def _clear_frames(error: BaseException | None) -> None:
    """Drops what the frames of an error hold: a sweep keeps its errors to the end, not their tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HnsegError(
            f"{error.filename}: cannot be written ({error.strerror}); choose another runs=FOLDER"
        ) from error


def read_json(path: Path, *keys: str) -> Any:
    """A JSON file of a run, and in it the keys that it must have.

    Raises:
        DamagedRunError: It cannot be read, or lacks a key.
    """
    reason = "damaged"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not keys or (isinstance(content, dict) and content.keys() >= {*keys}):
            return content
    except ValueError as error:
        reason = f"damaged: {error}"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise DamagedRunError(
        f"{path}: cannot be read ({reason}); put it back, or train anew with overwrite=true"
    )


def _write_json(path: Path, content: Any) -> None:
    _write(path, json.dumps(content, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
