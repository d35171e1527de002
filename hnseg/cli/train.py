"""The command train: checks a job, finds its cases, and trains it in its folder."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import typer

from hnseg.cli.app import HYDRA, TRAIN, app, suggest
from hnseg.errors import HnsegError

# Everything heavy is imported where it is used, so that a mistake is answered in a second.

_SWEPT = set[Path]()  # run folders of this process's sweep


@app.command(context_settings=HYDRA, rich_help_panel=TRAIN)
def train(context: typer.Context) -> None:
    """Train one stage with one network on one fold, or a sweep of them."""
    from hnseg.app import run

    run(main, "train", context.args)


def main(cfg: Any) -> float:
    """Composes, checks, fits, and returns the validation Dice of the best checkpoint."""
    from hnseg.config import read_job
    from hnseg.training.cohort import find_fold
    from hnseg.training.launch import check_share, find_processes, sweep_overrides, train_in_own_process
    from hnseg.training.runs import RunFolder, record

    job = read_job(cfg)
    settings = record(job)
    fold = find_fold(job)
    folder, processes = RunFolder(job.run_dir), find_processes(job.trainer)
    title = f"{job.arm} {fold.split.title(job.fold)}"
    processes.say(f"{job.stage.name} · {job.model.name} · fold {job.fold} → {job.run_dir}")
    check_share(job, processes.size, len(fold.validation))
    if sweep_overrides() is not None:
        if folder.path in _SWEPT:  # with overwrite=true it would replace the other's run
            raise HnsegError(
                f"{folder.path}: another job of this sweep trains there; set arm='NAME_${{seed}}'"
            )
        _SWEPT.add(folder.path)
    if not job.overwrite:
        folder.check(settings, fold.split)
    if folder.finished and not job.overwrite:
        processes.say(f"{title}: finished before (overwrite=true trains it anew)")
    elif processes.size > 1 and processes.launcher == "lightning" and (own := sweep_overrides()) is not None:
        train_in_own_process(own)
    else:
        from hnseg.training.fit import train

        with folder.locked() if processes.rank == 0 else nullcontext():
            dice = train(job, settings, folder, title, fold, processes)["val/dice"]
        if processes.rank == 0 and sweep_overrides() is None:
            localises = job.stage.name == "localiser"
            runs, bundle = (
                (folder.path.parent, "localiser") if localises else (folder.path.parents[1], "bundle")
            )
            suggest(f"hnseg export {runs} --out {bundle}")
        return dice
    return folder.scores()["val/dice"]
