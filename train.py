"""Train one stage with one network on one fold.

    python train.py stage=fine model=resenc fold=0 data.root=PATH
    python train.py stage=fine model=resenc fold=0-4 -m data.root=PATH     five jobs
    python train.py stage=fine model=resenc --cfg job                      what would run

The same command again takes an interrupted run up where it stopped, and reports a finished one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hnseg.hydra_app import run
from hnseg.preflight import check_job
from hnseg.run_folder import RunFolder, Score
from hnseg.tracking.settings import LoggerSettings
from hnseg.training.cohort import Fold, find_fold

# Everything heavy is imported where it is used, so that a mistake is answered in a second.
Config = dict[str, Any]


def main(cfg: DictConfig) -> Score:
    """Composes, checks, fits, and returns the validation Dice of the best checkpoint."""
    config: Config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    check_job(config)
    LoggerSettings(**config["logger"])  # refuses what it does not know
    if config["init_from"] is not None:
        from hnseg.importing.pretrained import identify

        config["init_from"] = identify(Path(config["init_from"]))
    fold = find_fold(config)
    folder = RunFolder(Path(config["run_dir"]))
    title = f"{config['arm']} {fold.split.title(config['fold'])}"
    with folder.claimed(config, split=fold.split, overwrite=config["overwrite"]) as state:
        if state == "finished":
            print(f"{title}: finished before, {folder.path} (overwrite=true trains it anew)")
        else:
            train_run(config, folder, title, fold)
        return Score(folder.scores()["val/dice"], state, folder.path)


def train_run(config: Config, folder: RunFolder, title: str, fold: Fold) -> None:
    """Trains what the checks have passed, on the cases of one fold, into its folder."""
    import lightning as L

    from hnseg.importing.pretrained import initialise, read_weights
    from hnseg.job import describe, make_input, make_stage
    from hnseg.quiet import quiet
    from hnseg.training.build import build_cohort, build_module, pick_machine
    from hnseg.training.checkpoint_files import resumable
    from hnseg.training.checkpoints import summarise
    from hnseg.training.fit import fit

    quiet()
    device, precision = pick_machine(config)
    resume = resumable(folder.last, folder.previous)
    # Of a fresh run alone: a checkpoint to resume from holds what has become of them.
    fresh = config["init_from"] is not None and resume is None
    first = Path(config["init_from"]["path"]) if fresh else None
    weights = read_weights(first) if first else {}  # a file that cannot be used is told before preparing
    stage = make_stage(config)
    cohort = build_cohort(config, fold, stage, make_input(config, stage), device)
    print(f"{title}: {device.type} in {precision}, {cohort.loading}")
    fingerprint = cohort.fingerprint()
    card = describe(
        config,
        stage,
        cohort.spec,
        split=fold.split.hash,
        fingerprint=fingerprint and fingerprint.hash,
        trained_on=[case.case_id for case in fold.train],
    )
    # After all that the cache may spare a run: transforms that measure the fold draw numbers too.
    L.seed_everything(config["seed"], workers=True, verbose=False)
    module = build_module(config, stage, card, precision, folder.lengths)
    if first:
        print(f"{title}: {first}: {initialise(module.network, weights, first)}")
    scores = fit(config, module, cohort, folder, title, device.type, precision, resume)
    print(f"{title}: {summarise(scores)}, {folder.best}")


if __name__ == "__main__":
    run(main, config_name="train")
