"""The loggers of one training."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnseg.errors import HnsegError
from hnseg.tracking.description import describe_run, told
from hnseg.tracking.history import before, next_step, read_rows
from hnseg.tracking.picture_files import discard_pictures
from hnseg.tracking.settings import LoggerSettings

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@contextmanager
def loggers(
    folder: Path, config: dict[str, Any], *, provenance: dict[str, Any], step: int = 0
) -> Iterator[list[Logger]]:
    """metrics.csv in the run's folder and what `logger` asks for beside it, each closed at the end.

    A run that is taken up again goes on with what it logged before the step of its checkpoint; what it
    logged later is dropped, for it will be logged again. Its W&B run stays the same one.

    Args:
        folder: The run's folder.
        config: Resolved configuration, logged with the run.
        provenance: What the run comes from: hashes of split and data.
        step: Optimiser steps that the checkpoint has behind it, 0 for a fresh run.

    Raises:
        HnsegError: As `LoggerSettings`.
    """
    from hnseg.tracking.csv_file import CsvFile

    settings = LoggerSettings.from_dict(config["logger"])
    former = read_rows(folder)
    rows = before(former, step)
    discard_pictures(folder, step)
    with_csv: list[Logger] = [CsvFile(folder / "metrics.csv", rows)]
    if settings.kind == "csv":
        yield with_csv
    elif settings.kind == "tensorboard":
        yield [*with_csv, _tensorboard_logger(folder, config, provenance, step)]
    else:
        from hnseg.tracking.wandb_runs import wandb_logger

        fields = {"project": settings.project, **describe_run(config, provenance)}
        with wandb_logger(
            folder, rows, next_step(former), settings.mode, paints=settings.paints, **fields
        ) as logger:
            yield [*with_csv, logger]


def require_loggers(settings: LoggerSettings) -> None:
    """Refuses loggers that are not to be had here, before anything is trained for them.

    Raises:
        HnsegError: TensorBoard is not installed; online without an API key.
    """
    if settings.kind == "tensorboard" and not importlib.util.find_spec("tensorboard"):
        raise HnsegError("logger=tensorboard needs a package more; pip install hnseg[tensorboard]")
    if settings.kind == "wandb" and settings.mode == "online":
        from hnseg.tracking.wandb_runs import require_login

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
