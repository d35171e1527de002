"""The loggers of one training: metrics.csv, TensorBoard, W&B."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

from hnseg.card import InputSpec
from hnseg.config import LoggerSettings
from hnseg.errors import HnsegError
from hnseg.files import read_table, replacing
from hnseg.training.callbacks import GateWeights, Throughput
from hnseg.training.description import describe_run, told
from hnseg.training.pictures import Pictures, discard_pictures

Row = dict[str, str]


def read_rows(folder: Path, step: int) -> list[Row]:
    """The rows of metrics.csv without their empty cells, oldest first.

    Args:
        folder: The run's folder.
        step: Of the checkpoint; what was logged after it will be logged again.

    Raises:
        HnsegError: It is damaged.
    """
    path = folder / "metrics.csv"
    remedy = "put it back, or move it away: the run goes on without its rows"
    _, rows = read_table(path, remedy, ("step",))
    odd = next((row["step"] for row in rows if not row["step"].isdecimal()), None)
    if odd is not None:
        raise HnsegError(f"{path}: step {odd!r} is no number; {remedy}")
    rows = [row for row in rows if int(row["step"]) < step]
    return [{key: value for key, value in row.items() if value} for row in rows]


class CsvFile(Logger):
    """Logs into one file that is replaced as a whole; Lightning's own logger removes it to go on with it.

    Args:
        path: The file.
        rows: What it begins with: those of an interrupted run up to its checkpoint.
    """

    name, version = "", ""  # of a folder that Lightning would make

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        super().__init__()
        self.path = path
        self.rows: list[Mapping[str, Any]] = list(rows)
        self.columns: list[str] = []
        self.text = self.written = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row, which `save` writes."""
        row = {**metrics, "step": step}
        self.rows.append(row)
        if row.keys() <= set(self.columns):
            self.text += _lines(self.columns, [row])  # all anew would take longer with every epoch
        else:
            self.columns = sorted({key for row in self.rows for key in row})
            self.text = _lines(self.columns, [dict(zip(self.columns, self.columns, strict=True)), *self.rows])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.json has them."""

    def save(self) -> None:
        """Replaces the file where rows are new; Lightning asks for it after each.

        Raises:
            HnsegError: It cannot be written.
        """
        if self.text != self.written:
            with replacing(self.path) as temporary:
                temporary.write_text(self.text, encoding="utf-8", newline="")
            self.written = self.text


def _lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as lines of the file; a cell is empty where a row has no such column."""
    lines = StringIO(newline="")
    csv.DictWriter(lines, columns).writerows(rows)
    return lines.getvalue()


@contextmanager
def loggers(
    folder: Path, config: dict[str, Any], provenance: dict[str, Any], step: int = 0, rank: int = 0
) -> Iterator[list[Logger]]:
    """metrics.csv in the run's folder and what `logger` asks for beside it, each closed at the end.

    A run that is taken up again goes on with what it logged before the step of its checkpoint; what it
    logged later is dropped, for it will be logged again. Its W&B run stays the same one.

    Args:
        folder: The run's folder.
        config: Resolved configuration, logged with the run.
        provenance: What the run comes from: hashes of split and data.
        step: Optimiser steps that the checkpoint has behind it, 0 for a fresh run.
        rank: Of this process; those above 0 log nothing.
    """
    if rank > 0:
        yield [DummyLogger()]
        return
    settings = LoggerSettings(**config["logger"])
    rows = read_rows(folder, step)
    discard_pictures(folder, step)
    with_csv: list[Logger] = [CsvFile(folder / "metrics.csv", rows)]
    if settings.kind == "csv":
        yield with_csv
    elif settings.kind == "tensorboard":
        yield [*with_csv, _tensorboard_logger(folder, config, provenance, step)]
    else:
        from hnseg.training.wandb_runs import wandb_logger

        fields = {"project": settings.project, **describe_run(config, provenance)}
        with wandb_logger(folder, rows, settings.mode, paints=settings.paints, **fields) as logger:
            yield [*with_csv, logger]


def require_loggers(settings: LoggerSettings) -> None:
    """Refuses loggers that are not to be had here, before anything is trained for them.

    Raises:
        HnsegError: TensorBoard is not installed; online without an API key.
    """
    if settings.kind == "tensorboard" and not importlib.util.find_spec("tensorboard"):
        raise HnsegError("logger=tensorboard needs a package more; pip install hnseg[tensorboard]")
    if settings.kind == "wandb" and settings.mode == "online":
        from hnseg.training.wandb_runs import require_login

        require_login("logger.mode=online")


def _tensorboard_logger(
    folder: Path, config: dict[str, Any], provenance: dict[str, Any], step: int
) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    # TensorBoard hides what earlier files of the folder hold from purge_step on.
    logger = TensorBoardLogger(
        folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step or None
    )
    logger.log_hyperparams(told(config) | {"provenance": provenance})
    return logger


def callbacks(folder: Path, settings: LoggerSettings, spec: InputSpec) -> list[L.Callback]:
    """Throughput, weights of a learned gate, and pictures where they are asked for.

    Args:
        folder: The run's folder.
        settings: The configuration's `logger`.
        spec: The network's input chain.
    """
    painted = [Pictures(folder, spec.channel_names, settings.pictures_every)] if settings.paints else []
    return [Throughput(), GateWeights(spec.channel_keys), *painted]
