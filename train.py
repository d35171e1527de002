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

from hnseg.cases import Case
from hnseg.errors import HnsegError
from hnseg.head_masks import require_head_masks
from hnseg.hydra_app import run
from hnseg.preflight import (
    check_augment,
    check_class_weights,
    check_length,
    check_patch,
    check_recipe,
    check_stages,
    check_switches,
    check_window,
)
from hnseg.run_folder import RunFolder, Score
from hnseg.tracking.settings import LoggerSettings
from hnseg.training.cohort import find_coarse, read_cohort

# Everything heavy is imported where it is used, so that a mistake is answered in a second.
Config = dict[str, Any]


def main(cfg: DictConfig) -> Score:
    """Composes, checks, fits, and returns the validation Dice of the best checkpoint."""
    check_stages(cfg.model)
    patch = None if OmegaConf.is_missing(cfg.training, "patch") else list(cfg.training.patch)
    check_patch(patch, cfg.model, cfg.stage.name)
    config: Config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    check_length(config["training"], config["trainer"]["accumulate"])
    check_class_weights(config["loss"]["loss"]["class_weights"], config["stage"]["classes"])
    check_switches(config)
    check_recipe(config["recipe"])
    check_augment(config["augment"], coordinates=config["recipe"]["coordinates"])
    check_window(config["recipe"], config["stage"]["name"], config["cte"])
    LoggerSettings(**config["logger"])  # refuses what it does not know
    if config["init_from"] is not None:
        from hnseg.importing.pretrained import identify

        config["init_from"] = identify(Path(config["init_from"]))
    cases, split = read_cohort(config["data"], config["stage"]["name"])
    train, validation = split.assign(cases, config["fold"])
    places_by_lesions = config["stage"]["placement"] == "lesions"
    coarse = find_coarse(config, [*train, *validation]) if places_by_lesions else None
    if config["stage"]["placement"] == "below_head":
        require_head_masks([*train, *validation], config["data"])
    folder = RunFolder(Path(config["run_dir"]))
    title = f"{config['arm']} {split.title(config['fold'])}"
    with folder.claimed(config, split=split, overwrite=config["overwrite"]) as state:
        if state == "finished":
            print(f"{title}: finished before, {folder.path} (overwrite=true trains it anew)")
        else:
            train_run(config, folder, title, (train, validation), coarse, split.hash)
        return Score(folder.scores()["val/dice"], state, folder.path)


def train_run(
    config: Config,
    folder: RunFolder,
    title: str,
    fold: tuple[list[Case], list[Case]],
    coarse: Path | None,
    split_hash: str,
) -> None:
    """Trains what the checks have passed, on the cases of one fold, into its folder."""
    import lightning as L
    import torch

    from hnseg.hardware import pick_device, pick_precision
    from hnseg.importing.pretrained import initialise, read_weights
    from hnseg.job import describe, make_input, make_stage
    from hnseg.quiet import quiet
    from hnseg.training.build import build_cohort, build_module
    from hnseg.training.checkpoint_files import resumable
    from hnseg.training.checkpoints import summarise
    from hnseg.training.fit import fit

    quiet()
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    device = pick_device(config["trainer"]["device"])
    if config["augment"].get("device") == "cuda" != device.type:
        raise HnsegError(
            "augment.device=cuda: this training runs on the processor; choose augment.device=cpu"
        )
    precision = pick_precision(device, config["trainer"]["precision"])
    resume = resumable(folder.last, folder.previous)
    # Of a fresh run alone: a checkpoint to resume from holds what has become of them.
    fresh = config["init_from"] is not None and resume is None
    first = Path(config["init_from"]["path"]) if fresh else None
    weights = read_weights(first) if first else {}  # a file that cannot be used is told before preparing
    stage = make_stage(config)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    cohort = build_cohort(config, fold, coarse, stage, make_input(config, stage), gpus)
    print(f"{title}: {device.type} in {precision}, {cohort.loading}")
    fingerprint = cohort.fingerprint()
    card = describe(
        config,
        stage,
        cohort.spec,
        split=split_hash,
        fingerprint=fingerprint and fingerprint.hash,
        trained_on=[case.case_id for case in fold[0]],
    )
    # After all that the cache may spare a run: transforms that measure the fold draw numbers too.
    L.seed_everything(config["seed"], workers=True, verbose=False)
    module = build_module(config, stage, card, precision)
    if first:
        print(f"{title}: {first}: {initialise(module.network, weights, first)}")
    scores = fit(config, module, cohort, folder, title, device.type, precision, resume)
    print(f"{title}: {summarise(scores)}, {folder.best}")


if __name__ == "__main__":
    run(main, config_name="train")
