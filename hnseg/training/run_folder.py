"""One folder a run: started once, resumed by the same command, never overwritten unasked."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypedDict

from hnseg.data.splits import Split
from hnseg.errors import HnsegError, few
from hnseg.files import lock, replacing

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


State = Literal["fresh", "interrupted", "finished"]


class Length(TypedDict):
    """With how many `epochs` a run was begun that is longer now, and how many it had `trained` by then."""

    epochs: int
    trained: int


class Score(float):
    """A run's validation Dice, which also knows how the run stood before and where it lies.

    Args:
        dice: Of the best checkpoint.
        state: `finished` where nothing was trained for it.
        folder: The run's.
    """

    state: State
    folder: Path

    def __new__(cls, dice: float, state: State, folder: Path) -> Score:
        score = super().__new__(cls, dice)
        score.state, score.folder = state, folder
        return score

    def __getnewargs__(self) -> tuple[float, State, Path]:  # type: ignore[override]
        return float(self), self.state, self.folder  # jobs of other processes hand it over


class RunFolder:
    """What a training leaves on disk: config.json, split.json, best.ckpt, last.ckpt, metrics.csv, score.json.

    While it trains, progress.json says how far it is; failed.txt says what ended it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation Dice."""
        return self.path / "best.ckpt"

    @property
    def last(self) -> Path:
        """The newest checkpoint, from which an interrupted run goes on."""
        return self.path / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before it, while the run lasts: what is left where the newest is damaged."""
        return self.path / "previous.ckpt"

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """All that a run keeps, there or not."""
        return self.best, self.last, self.previous

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return self.last.exists() or self.previous.exists()

    @property
    def split(self) -> Path:
        """How the cases were dealt into folds (`hnseg.data.splits.Split`)."""
        return self.path / "split.json"

    @property
    def progress(self) -> Path:
        """How far the run was after its last epoch (`hnseg.training.callbacks.ProgressFile`)."""
        return self.path / "progress.json"

    @property
    def failure(self) -> Path:
        """The traceback of the error that ended the run."""
        return self.path / "failed.txt"

    @property
    def diverged(self) -> Path:
        """A step whose numbers were none (`hnseg.training.callbacks.NumberGuard`)."""
        return self.path / "diverged.pt"

    @contextmanager
    def claimed(
        self, config: dict[str, Any], *, split: Split | None = None, overwrite: bool = False
    ) -> Iterator[State]:
        """Holds the folder while a run trains in it, and keeps the traceback where an error ends it.

        Yields:
            As `look` returns.

        Raises:
            HnsegError: As `look`, or another process trains there.
        """
        with _told():
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with lock(self.path):
                state = self.look(config, split=split, overwrite=overwrite)
                try:
                    yield state
                except Exception as error:
                    self._keep_failure()
                    _let_go(error)
                    raise
        finally:
            with suppress(OSError):
                self.path.rmdir()  # where nothing was begun

    def _keep_failure(self) -> None:
        """Writes the traceback of what ends a run that has begun."""
        if self._stored.exists() and not self.finished:
            with suppress(HnsegError), replacing(self.failure) as temporary:  # it would hide the first
                temporary.write_text(traceback.format_exc(), encoding="utf-8")

    def look(self, config: dict[str, Any], *, split: Split | None = None, overwrite: bool = False) -> State:
        """How a run of a configuration, on the folds of a cohort, stands here; nothing is changed.

        Returns:
            `fresh`, `interrupted` (resume from `last`) or `finished`.

        Raises:
            HnsegError: The folder holds a run with other settings, the first that differs is named, or on
                other folds, the cases that came or went are; or it cannot be made longer.
        """
        if overwrite or not (self.begun or self.finished):
            return "fresh"
        before = _read(self._stored) if self._stored.exists() else config
        self._require_same(before, config, split)
        if not longer(flatten(before), flatten(config)):
            return "finished" if self.finished else "interrupted"
        if not self.begun:
            raise HnsegError(
                f"{self.path}: last.ckpt is gone, from which more epochs than {before['training']['epochs']} "
                "would go on; put it back, or train anew with overwrite=true"
            )
        return "interrupted"

    def begin(self, config: dict[str, Any], *, split: Split | None = None, overwrite: bool = False) -> State:
        """Makes the folder that of a configuration and of folds, once all is known to be well with them.

        Returns:
            As `look`.

        Raises:
            HnsegError: As `look`, or the folder cannot be written.
        """
        state = self.look(config, split=split, overwrite=overwrite)
        with _told():
            if overwrite:
                self._clear()
            if state == "fresh":
                self._lengths.unlink(missing_ok=True)
            if state == "fresh" or not self._stored.exists():
                _write(self._stored, config)
            elif longer(flatten(before := _read(self._stored)), flatten(config)):
                self._lengthen(before, config)
            if split is not None and not self.finished:
                split.write(self.split)
            for stale in (self.failure, self.diverged):
                stale.unlink(missing_ok=True)
        return state

    @property
    def _stored(self) -> Path:
        return self.path / "config.json"

    @property
    def _lengths(self) -> Path:
        return self.path / "lengths.json"

    @property
    def _score(self) -> Path:
        return self.path / "score.json"

    def _lengthen(self, before: dict[str, Any], config: dict[str, Any]) -> None:
        """Takes more epochs for its own. Cut off anywhere, the same command does it again."""
        epochs = before["training"]["epochs"]
        progress = _read(self.progress) if self.progress.exists() else {"epoch": 0}
        kept = [length for length in self.lengths if length["epochs"] < epochs]
        _write(self._lengths, [*kept, Length(epochs=epochs, trained=progress["epoch"])])
        self._score.unlink(missing_ok=True)
        _write(self._stored, config)

    @property
    def lengths(self) -> list[Length]:
        """Those that the run had before, the first one first."""
        return _read(self._lengths) if self._lengths.exists() else []

    def _clear(self) -> None:
        """Removes what a run left; other files stay."""
        for name in ("wandb", "tensorboard", "pictures"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        # The configuration goes last: cut off here, the old checkpoints must not pass for another run's.
        checkpoints = ("previous.ckpt", "last.ckpt", "best.ckpt")
        results = ("score.json", "progress.json", "metrics.csv", "diverged.pt", "lengths.json", *checkpoints)
        for name in (*results, "split.json", "config.json"):
            (self.path / name).unlink(missing_ok=True)

    def _require_same(self, stored: dict[str, Any], config: dict[str, Any], split: Split | None) -> None:
        """Refuses another run's settings or folds."""
        before, now = flatten(stored), flatten(json.loads(json.dumps(config)))
        folds = _read(self.split)["folds"] if self.split.exists() else None
        same_folds = split is not None and folds == [list(fold) for fold in split.folds]
        for key in changed(before, now, same_folds=same_folds):
            raise HnsegError(
                f"{self.path} holds a run with {key}={before.get(key)}, not {now.get(key)}; "
                "give this one another name=..., or overwrite=true"
            )
        if split is not None and folds is not None and not same_folds:
            raise HnsegError(
                f"{self.path} holds a run on other folds: {_change(folds, split)}; data.split={self.split} "
                "keeps its folds (data.exclude=[CASE] leaves out what came), overwrite=true starts anew, "
                "another name=... apart"
            )

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._score.exists()

    def finish(self, scores: dict[str, float]) -> None:
        """Marks the run as finished, with the scores of its best checkpoint."""
        _write(self._score, scores)
        self.previous.unlink(missing_ok=True)

    def scores(self) -> dict[str, float]:
        """What `finish` wrote."""
        return _read(self._score)


def _change(folds: list[list[str]], split: Split) -> str:
    """Which cases came and which went since folds were dealt."""
    before, now = ({case_id for fold in one for case_id in fold} for one in (folds, split.folds))
    parts = {"came": sorted(now - before), "went": sorted(before - now)}
    told = [f"{few(ids)} {what}" for what, ids in parts.items() if ids]
    return "; ".join(told) or "the same cases are dealt in another way (their centres changed?)"


def _let_go(error: BaseException | None) -> None:
    """Drops what the frames of an error hold: a sweep keeps it to its end, and must not keep the tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextmanager
def _told() -> Iterator[None]:
    """Makes one line of a folder that does not let itself be written."""
    try:
        yield
    except OSError as error:
        raise HnsegError(
            f"{error.filename}: cannot be written ({error.strerror}); choose another runs=FOLDER"
        ) from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise HnsegError(
            f"{path}: damaged ({error}); put it back, or train anew with overwrite=true"
        ) from error


def _write(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
