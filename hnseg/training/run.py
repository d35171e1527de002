"""One training, by one process or by several."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from signal import SIGINT
from typing import Any

import lightning as L
import torch

from hnseg.devices import Precision
from hnseg.job import describe, make_input, make_stage
from hnseg.processes import quiet
from hnseg.training.build import build_cohort, build_module, pick_machine
from hnseg.training.checkpoints import require_same_data, resumable, summarise
from hnseg.training.cohort import Fold
from hnseg.training.fit import fit, tell_stopped
from hnseg.training.logger_settings import LoggerSettings
from hnseg.training.loggers import require_loggers
from hnseg.training.needs import StepJob, estimate, require_disk, require_memory
from hnseg.training.pretrained import initialise, read_weights
from hnseg.training.run_folder import RunFolder
from hnseg.training.spread import spread
from hnseg.training.strategy import freeze_idle
from hnseg.training.team import Team

Config = dict[str, Any]


def train(config: Config, folder: RunFolder, title: str, fold: Fold, team: Team, processes: int) -> None:
    """Trains what the checks have passed, on the cases of one fold, into its folder.

    Args:
        config: The composed configuration as plain lists and numbers.
        folder: The run's, claimed.
        title: Says which run this is.
        fold: The cases.
        team: Of this process.
        processes: That are to train; where they have not been started, they are here.

    Raises:
        HnsegError: What cannot be trained here.
    """
    if processes == team.size:
        train_as_one(config, folder, title, fold, team)
        return
    try:
        spread(train_as_one, processes, config, folder, title, fold)
    except KeyboardInterrupt:
        tell_stopped(title)
        raise SystemExit(128 + SIGINT) from None


def train_as_one(config: Config, folder: RunFolder, title: str, fold: Fold, team: Team) -> None:
    """`train` in a process that is one of its team."""
    quiet()
    team.join(config["trainer"]["device"])
    device, precision = pick_machine(config, team)
    overwrite = config["overwrite"]
    resume = team.share(lambda: None if overwrite else resumable(folder.last, folder.previous))
    # Of a fresh run alone: a checkpoint to resume from holds what has become of them.
    fresh = config["init_from"] is not None and resume is None
    first = Path(config["init_from"]["path"]) if fresh else None
    weights = read_weights(first) if first else {}  # a file that cannot be used is told before preparing
    stage = make_stage(config)
    spec = make_input(config, stage)
    require_resources(config, folder, describe(config, stage, spec)["network"], device, precision, team)
    require_loggers(LoggerSettings.from_dict(config["logger"]))
    begin = partial(folder.begin, config, split=fold.split, overwrite=overwrite)
    if resume is None:
        team.share(begin)  # so that it is seen while its volumes are prepared
    cohort = build_cohort(config, fold, stage, spec, device, team)
    together = f"{team.size} processes, each on {device.type}" if team.size > 1 else device.type
    team.say(f"{title}: {together} in {precision}, {cohort.loading}")
    fingerprint = team.in_turn(cohort.fingerprint)
    provenance = {"split": fold.split.hash, "fingerprint": fingerprint and fingerprint.hash}
    provenance |= {"data": team.in_turn(cohort.digest)}
    trained_on = [case.case_id for case in fold.train]
    card = describe(config, stage, cohort.spec, **provenance, trained_on=trained_on)
    if resume is not None:
        require_same_data(resume, card)
        team.share(begin)
    # After all that the cache may spare a run: transforms that measure the fold draw numbers too.
    L.seed_everything(config["seed"], workers=True, verbose=False)
    module = build_module(config, stage, card, precision, folder.lengths)
    if first:
        team.say(f"{title}: {first}: {initialise(module.network, weights, first)}")
    if team.size > 1:
        freeze_idle(module, cohort.spec.channels, config["training"]["patch"])
        torch.manual_seed(config["seed"] + team.rank)  # what devices draw by themselves differs
    scores = fit(config, module, cohort, folder, title, device.type, precision, resume, team)
    team.say(f"{title}: {summarise(scores)}, {folder.best}")


def require_resources(
    config: Config, folder: RunFolder, network: Config, device: torch.device, precision: Precision, team: Team
) -> None:
    """Refuses what cannot fit the memory or the disk, before a cohort is prepared for it."""
    job = StepJob.of(config, network, team.size)
    needs = estimate(job, precision, device)
    require_memory(job, needs, device, precision, 1 if device.type == "cuda" else team.local_size)
    team.share(lambda: require_disk(needs, folder))
