"""What train.py does: checks a job, finds its cases, and trains it in its folder."""

from __future__ import annotations

from contextlib import nullcontext

from omegaconf import DictConfig

from hnseg.card import plain
from hnseg.config import read_job
from hnseg.preflight import check_job, check_share
from hnseg.training.cohort import find_fold
from hnseg.training.launch import find_processes, sweep_overrides, train_in_own_process
from hnseg.training.run_folder import RunFolder

# Everything heavy is imported where it is used, so that a mistake is answered in a second.


def main(cfg: DictConfig) -> float:
    """Composes, checks, fits, and returns the validation Dice of the best checkpoint."""
    job = read_job(cfg)
    config = plain(job)
    if job.init_from is not None:
        from hnseg.training.pretrained import identify

        config["init_from"] = identify(job.init_from)
    fold = find_fold(config)
    check_job(config)
    folder, processes = RunFolder(job.run_dir), find_processes(config["trainer"])
    title = f"{job.arm} {fold.split.title(job.fold)}"
    check_share(config, processes.size, len(fold.validation))
    state = folder.look(config, split=fold.split, overwrite=job.overwrite)
    if state == "finished":
        processes.say(f"{title}: finished before, {folder.path} (overwrite=true trains it anew)")
    elif processes.size > 1 and processes.launcher == "lightning" and (own := sweep_overrides()) is not None:
        train_in_own_process(own)
    else:
        from hnseg.training.fit import train

        with folder.locked() if processes.rank == 0 else nullcontext():
            return train(config, folder, title, fold, processes)["val/dice"]
    return folder.scores()["val/dice"]
