"""Loggers. The only module that knows W&B."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger

from hnseg.errors import HnsegError


@contextmanager
def loggers(
    folder: Path,
    config: dict[str, Any],
    *,
    kind: Literal["wandb", "csv"],
    arm: str,
    group: str,
    mode: str = "offline",
    project: str = "hnseg",
) -> Iterator[list[Logger]]:
    """metrics.csv in the run's folder and, for `wandb`, a W&B run of its own.

    W&B writes to disk alone unless `mode=online`: these are patients' scans, and nothing leaves the
    machine unasked. Neither mode ever waits for an answer at a prompt.

    Args:
        folder: The run's folder.
        config: Resolved configuration, logged with the run.
        kind: `wandb` or `csv`.
        arm: Stage and model of the run; its job type, and part of its name.
        group: Name of the experiment the run belongs to.
        mode: offline or online.
        project: W&B project.

    Raises:
        HnsegError: Unknown kind or mode, or online without an API key.
    """
    chosen: list[Logger] = [_csv_logger(folder)]
    if kind == "csv":
        yield chosen
        return
    if kind != "wandb":
        raise HnsegError(f"logger.kind={kind} is unknown; choose wandb or csv")
    if mode not in ("offline", "online"):
        raise HnsegError(f"logger.mode={mode} is unknown; choose offline or online")
    name = f"{arm}_fold_{config['fold']}"
    with _wandb_run(
        folder, mode, project=project, group=group, job_type=arm, name=name, config=config
    ) as run:
        yield [*chosen, run]


@contextmanager
def _wandb_run(folder: Path, mode: str, **fields: Any) -> Iterator[Logger]:
    """A W&B run that is closed at the end, as failed where the training failed."""
    os.environ["WANDB_MODE"] = mode
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    if mode == "online" and not wandb.api.api_key:
        raise HnsegError("logger.mode=online needs WANDB_API_KEY in the environment; set it, or log offline")
    folder.mkdir(parents=True, exist_ok=True)
    # The run's folder holds the configuration; nothing of the machine or the code is looked up.
    settings = wandb.Settings(save_code=False, disable_git=True, console="off", x_disable_meta=True)
    run = wandb.init(dir=folder, mode=mode, settings=settings, **fields)  # type: ignore[arg-type]
    # Multirun jobs share a process: unless each run is closed, the next would go on with it.
    try:
        yield WandbLogger(experiment=run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _csv_logger(folder: Path) -> CSVLogger:
    """Goes on with the metrics.csv of an interrupted run, which Lightning's logger would delete."""
    path = folder / "metrics.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    logger = CSVLogger(folder, name="", version="")
    logger.experiment.metrics = rows
    logger.save()
    return logger
