"""The loggers of one training (metrics.csv, TensorBoard, W&B), and what they show of its configuration."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

import hnseg
from hnseg.card import plain
from hnseg.config import Job, LoggerSettings
from hnseg.data.splits import CENTRES
from hnseg.errors import HnsegError
from hnseg.files import read_table, write_table
from hnseg.training.pictures import discard_pictures
from hnseg.training.runs import RunFolder

PACKAGES = ("torch", "lightning", "monai", "dynamic-network-architectures")
_CHECKOUT = Path(hnseg.__file__).resolve().parents[1]


class CsvFile(Logger):
    """Logs a row an epoch into one file that is replaced as a whole; Lightning's own removes it to go on.

    Args:
        path: The file.
        step: Of the checkpoint that is resumed from: earlier rows stay, later ones will be logged again.
    """

    name, version = "", ""  # of a folder that Lightning would make

    def __init__(self, path: Path, step: int) -> None:
        super().__init__()
        self.path, self.changed = path, False
        remedy = "put it back, or move it away: the run goes on without its rows"
        _, rows = read_table(path, remedy, ("step",))
        try:
            kept = [row for row in rows if int(row["step"]) < step]
        except ValueError as error:
            raise HnsegError(f"{path}: a step is no number ({error}); {remedy}") from error
        self.rows: list[dict[str, Any]] = [{key: cell for key, cell in row.items() if cell} for row in kept]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.rows and int(self.rows[-1]["step"]) == step:  # validation and training of one epoch
            self.rows[-1].update(metrics)
        else:
            self.rows.append({**metrics, "step": step})
        self.changed = True

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.json has them."""

    def save(self) -> None:
        """Replaces the file where a row is new; Lightning asks for it after each."""
        if self.changed:
            write_table(self.path, sorted({key for row in self.rows for key in row}), self.rows)
            self.changed = False


@contextmanager
def loggers(
    folder: RunFolder, job: Job, provenance: dict[str, Any], step: int = 0, rank: int = 0
) -> Iterator[list[Logger]]:
    """metrics.csv in the run's folder and what `logger` asks for beside it, each closed at the end.

    A run that is taken up again goes on with what it logged before the step of its checkpoint; what it
    logged later is dropped, for it will be logged again. Its W&B run stays the same one.

    Args:
        folder: The run's.
        job: The configuration.
        provenance: What the run comes from: hashes of split, data and first weights.
        step: Optimiser steps that the checkpoint has behind it, 0 for a fresh run.
        rank: Of this process; those above 0 log nothing.
    """
    if rank > 0:
        yield [DummyLogger()]
        return
    csv = CsvFile(folder.metrics, step)
    discard_pictures(folder.path, step)
    if job.logger.kind == "csv":
        yield [csv]
    elif job.logger.kind == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        # TensorBoard hides what earlier files of the folder hold from purge_step on.
        tensorboard = TensorBoardLogger(
            folder.path, name="", version="tensorboard", default_hp_metric=False, purge_step=step or None
        )
        tensorboard.log_hyperparams(public_settings(job) | {"provenance": provenance})
        yield [csv, tensorboard]
    else:
        from hnseg.training.wandb_runs import wandb_logger

        described = describe_run(job, provenance)
        with wandb_logger(folder.path, folder.id, csv.rows, job.logger, **described) as logger:
            yield [csv, logger]


def require_loggers(settings: LoggerSettings) -> None:
    """Refuses TensorBoard where it is not installed, and W&B online without a key, before the long work."""
    if settings.kind == "tensorboard" and not importlib.util.find_spec("tensorboard"):
        raise HnsegError("logger=tensorboard needs a package more; pip install hnseg[tensorboard]")
    if settings.kind == "wandb" and settings.mode == "online":
        from hnseg.training.wandb_runs import require_login

        require_login("logger.mode=online")


def describe_run(job: Job, provenance: dict[str, Any]) -> dict[str, Any]:
    """A training's name, group, job type, tags and configuration, in W&B's words."""
    fold = f"fold_{job.fold}"
    versions = {"python": platform.python_version(), "hnseg": hnseg.__version__}
    versions |= {name: version(name) for name in PACKAGES}
    made_of = {**provenance, "git": git_state(), "versions": versions}
    return {
        "name": f"{job.arm}_{fold}",
        "group": job.name,
        "job_type": job.arm,
        "tags": [job.stage.name, job.model.name, job.arm, fold, job.recipe.name],
        "config": {**public_settings(job), "provenance": made_of},
    }


def public_settings(job: Job) -> dict[str, Any]:
    """The configuration as a logger may show it: `(path)` in place of every folder and file, which may bear
    the name of a hospital or a study, and no case ids."""
    settings = job.model_dump(by_alias=True)
    del settings["data"]["exclude"]
    if job.data.split not in (None, CENTRES):
        settings["data"]["split"] = "(path)"
    shown: dict[str, Any] = plain(_hide_paths(settings))
    return shown


def _hide_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hide_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide_paths(item) for item in value]
    # Arguments of a class that the configuration names are text, whatever they mean.
    placed = isinstance(value, str) and value.startswith(("/", "~"))
    return "(path)" if placed or isinstance(value, Path) else value


def git_state(checkout: Path = _CHECKOUT) -> dict[str, Any] | None:
    """`commit` of the code's checkout, and whether tracked files differ from it (`dirty`); None without."""
    if not (checkout / ".git").exists():  # an installed hnseg may lie inside a checkout of something else
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=30).strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
