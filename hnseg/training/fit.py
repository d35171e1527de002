"""Fits a module to a cohort within a run's folder, from its last checkpoint where there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L

from hnseg.data.datamodule import StageDataModule
from hnseg.hardware import LIGHTNING, Precision
from hnseg.models.module import SegmentationModule
from hnseg.progress import ProgressFile, RunProgress
from hnseg.run_folder import RunFolder
from hnseg.tracking import loggers
from hnseg.tracking.callbacks import callbacks
from hnseg.tracking.settings import LoggerSettings
from hnseg.training.checkpoint_files import WholeCheckpoints
from hnseg.training.checkpoints import checkpoints, step_of, validation_scores
from hnseg.training.guard import NumberGuard

Config = dict[str, Any]


def trainer_options(config: Config, accelerator: str, precision: Precision) -> dict[str, Any]:
    """What a job's steps are like, in Lightning's words."""
    settings = config["trainer"]
    return {
        "accelerator": accelerator,
        "devices": 1,
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
) -> dict[str, float]:
    """Trains, from the checkpoint `resume` where there is one, and returns the best one's scores."""
    training = config["training"]
    provenance = {key: module.card[key] for key in ("split", "fingerprint")} | {"data": cohort.digest()}
    with loggers(folder.path, config, provenance=provenance, step=step_of(resume)) as logger:
        trainer = L.Trainer(
            **trainer_options(config, accelerator, precision),
            max_epochs=training["epochs"],
            check_val_every_n_epoch=training["validate_every"],
            plugins=[WholeCheckpoints(folder.last, folder.previous)],
            logger=logger,
            callbacks=[
                *checkpoints(
                    folder.path,
                    training["ema"],
                    compare=config["recipe"]["checkpoint"] == "compare",
                    monitor=_monitored(config, cohort),
                ),
                NumberGuard(folder.diverged),
                RunProgress(title),
                *callbacks(folder.path, LoggerSettings(**config["logger"]), cohort.spec),
                ProgressFile(folder.progress, folder.best),
            ],
            log_every_n_steps=1,
        )
        try:
            trainer.fit(module, cohort, ckpt_path=resume)
        except SystemExit:  # what Lightning makes of Ctrl-C; it ends a whole sweep
            print(f"{title}: stopped; the same command goes on where it stopped", file=sys.stderr)
            raise
    scores = validation_scores(folder.best)
    folder.finish(scores)
    return scores


def _monitored(config: Config, cohort: StageDataModule) -> str:
    """The score that chooses best.ckpt."""
    wants_coarse = config["recipe"]["roi"]["validate"] == "coarse"
    return "val_coarse/dice" if wants_coarse and cohort.coarse is not None else "val/dice"
