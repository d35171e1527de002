"""Train one stage with one network on one fold.

    python train.py stage=fine model=resenc fold=0 data.root=PATH
    python train.py stage=fine model=resenc fold=0-4 -m data.root=PATH     five jobs
    python train.py stage=fine model=resenc --cfg job                      what would run

The same command again takes an interrupted run up where it stopped, and reports a finished one.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from hnseg.app import run, take_folder
from hnseg.job_keys import read_job
from hnseg.preflight import check_job, check_share
from hnseg.training.cohort import find_fold
from hnseg.training.launch import find_processes, sweep_overrides, train_in_own_process
from hnseg.training.logger_settings import LoggerSettings
from hnseg.training.run_folder import RunFolder, Score

# Everything heavy is imported where it is used, so that a mistake is answered in a second.


def main(cfg: DictConfig) -> Score:
    """Composes, checks, fits, and returns the validation Dice of the best checkpoint."""
    config = read_job(cfg)
    check_job(config)
    LoggerSettings.from_dict(config["logger"])  # refuses what it does not know
    if config["init_from"] is not None:
        from hnseg.training.pretrained import identify

        config["init_from"] = identify(Path(config["init_from"]))
    fold = find_fold(config)
    folder, processes = RunFolder(Path(config["run_dir"])), find_processes(config["trainer"])
    take_folder(folder.path)
    title = f"{config['arm']} {fold.split.title(config['fold'])}"
    check_share(config, processes.size, len(fold.validation))
    state = folder.look(config, split=fold.split, overwrite=config["overwrite"])
    if state == "finished":
        processes.say(f"{title}: finished before, {folder.path} (overwrite=true trains it anew)")
    elif processes.size > 1 and processes.launcher == "lightning" and (job := sweep_overrides()) is not None:
        train_in_own_process(job)
    else:
        from hnseg.training.fit import train

        with folder.locked() if processes.rank == 0 else nullcontext():
            scores = train(config, folder, title, fold, processes)
        return Score(scores["val/dice"], state, folder.path)
    return Score(folder.scores()["val/dice"], state, folder.path)


if __name__ == "__main__":
    run(main, config_name="train")
