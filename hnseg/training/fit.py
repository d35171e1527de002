"""Fits a module to a cohort within a run's folder, from its last checkpoint where there is one."""

from __future__ import annotations

import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hnseg.data.datamodule import StageDataModule
from hnseg.devices import LIGHTNING, Precision
from hnseg.models.module import SegmentationModule
from hnseg.training.callbacks import NumberGuard, ProgressFile, RunProgress
from hnseg.training.checkpoints import WholeCheckpoints, checkpoints, step_of, validation_scores
from hnseg.training.logger_settings import LoggerSettings
from hnseg.training.loggers import callbacks, loggers
from hnseg.training.run_folder import RunFolder
from hnseg.training.strategy import EndAtOnce, team_options, team_plugins
from hnseg.training.team import ALONE, Team

Config = dict[str, Any]


def trainer_options(
    config: Config, accelerator: str, precision: Precision, team: Team = ALONE
) -> dict[str, Any]:
    """What a job's steps are like, in Lightning's words."""
    settings = config["trainer"]
    return {
        "accelerator": accelerator,
        **team_options(team),
        "precision": LIGHTNING[precision],
        "gradient_clip_val": config["optimizer"]["clip"],
        "accumulate_grad_batches": settings["accumulate"],
        "deterministic": settings["deterministic"],
        "benchmark": not settings["deterministic"],  # patches are all of one size
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def fit(
    config: Config,
    module: SegmentationModule,
    cohort: StageDataModule,
    folder: RunFolder,
    title: str,
    accelerator: str,
    precision: Precision,
    resume: Path | None,
    team: Team = ALONE,
) -> dict[str, float]:
    """Trains, from the checkpoint `resume` where there is one, and returns the best one's scores."""
    training = config["training"]
    provenance = {key: module.card[key] for key in ("split", "fingerprint", "data")}
    with _loggers(config, folder, provenance, resume, team) as logger:
        trainer = L.Trainer(
            **trainer_options(config, accelerator, precision, team),
            max_epochs=training["epochs"],
            check_val_every_n_epoch=training["validate_every"],
            plugins=[WholeCheckpoints(folder.last, folder.previous), *team_plugins(team)],
            logger=logger,
            callbacks=_callbacks(config, cohort, folder, title, team),
            log_every_n_steps=1,
        )
        try:
            trainer.fit(module, cohort, ckpt_path=resume)
        except SystemExit as end:  # what Lightning makes of Ctrl-C and SIGTERM; it ends a whole sweep
            tell_stopped(title)
            number = signal.SIGTERM if isinstance(end, SIGTERMException) else signal.SIGINT
            raise SystemExit(128 + number) from end
    scores = validation_scores(folder.best)
    team.share(lambda: folder.finish(scores))
    return scores


def tell_stopped(title: str) -> None:
    """Says that a run was stopped, and what to do."""
    print(f"{title}: stopped; the same command goes on where it stopped", file=sys.stderr)


def _loggers(
    config: Config, folder: RunFolder, provenance: dict[str, Any], resume: Path | None, team: Team
) -> AbstractContextManager[list[Logger]]:
    """The leader's; the others have one that forgets, which Lightning's callbacks ask for."""
    if not team.leads:
        return nullcontext([DummyLogger()])
    return loggers(folder.path, config, provenance=provenance, step=step_of(resume))


def _callbacks(
    config: Config, cohort: StageDataModule, folder: RunFolder, title: str, team: Team
) -> list[L.Callback]:
    """What all members do alike, and what the leader tells and keeps."""
    ema, compare = config["training"]["ema"], config["recipe"]["checkpoint"] == "compare"
    alike = [
        *checkpoints(folder.path, ema, compare=compare, monitor=_monitored(config, cohort)),
        NumberGuard(folder.diverged, team),
    ]
    if team.size > 1:
        alike.append(EndAtOnce())
    if not team.leads:
        return alike
    watching = callbacks(folder.path, LoggerSettings.from_dict(config["logger"]), cohort.spec)
    return [*alike, RunProgress(title), *watching, ProgressFile(folder.progress, folder.best)]


def _monitored(config: Config, cohort: StageDataModule) -> str:
    """The score that chooses best.ckpt."""
    wants_coarse = config["recipe"]["roi"]["validate"] == "coarse"
    return "val_coarse/dice" if wants_coarse and cohort.coarse is not None else "val/dice"
