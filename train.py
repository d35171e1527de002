"""Train one stage with one network on one fold.

    python train.py stage=fine model=resenc fold=0 data.root=PATH
    python train.py stage=fine model=resenc fold=0-4 -m data.root=PATH     five jobs
    python train.py stage=fine model=resenc --cfg job                      what would run

The same command again takes an interrupted run up where it stopped, and reports a finished one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from hnseg.cases import Case
from hnseg.data.splits import CENTRES, Split
from hnseg.head_masks import head_folder, require_head_masks, with_head_mask
from hnseg.hydra_app import run
from hnseg.preflight import (
    check_class_weights,
    check_length,
    check_patch,
    check_recipe,
    check_stages,
    check_switches,
    check_window,
    find_coarse,
    find_cohort,
)
from hnseg.run_folder import RunFolder, Score
from hnseg.tracking.settings import LoggerSettings

# Everything heavy is imported where it is used, so that a mistake is answered in a second.
if TYPE_CHECKING:
    from hnseg.data.datamodule import StageDataModule
    from hnseg.data.intensity import InputSpec
    from hnseg.hardware import Precision
    from hnseg.models.module import SegmentationModule
    from hnseg.stage import Stage

Config = dict[str, Any]


def main(cfg: DictConfig) -> Score:
    """Composes, checks, fits, and returns the validation Dice of the best checkpoint."""
    check_stages(cfg.model)
    patch = None if OmegaConf.is_missing(cfg.training, "patch") else list(cfg.training.patch)
    check_patch(patch, cfg.model, cfg.stage.name)
    config: Config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    check_length(config["training"])
    check_class_weights(config["loss"]["loss"]["class_weights"], config["stage"]["classes"])
    check_switches(config)
    check_recipe(config["recipe"])
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
            train_run(config, cfg, folder, title, (train, validation), coarse, split.hash)
        return Score(folder.scores()["val/dice"], state, folder.path)


def train_run(
    config: Config,
    cfg: DictConfig,
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
    from hnseg.training import summarise

    quiet()
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    device = pick_device(config["trainer"]["device"])
    precision = pick_precision(device, config["trainer"]["precision"])
    # Of a fresh run alone: a checkpoint to resume from holds what has become of them.
    fresh = config["init_from"] is not None and not folder.last.exists()
    first = Path(config["init_from"]["path"]) if fresh else None
    weights = read_weights(first) if first else {}  # a file that cannot be used is told before preparing
    stage = make_stage(config)
    cohort = build_cohort(config, cfg, fold, coarse, stage, make_input(config, stage))
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
    module = build_module(config, cfg, stage, card, precision)
    if first:
        print(f"{title}: {first}: {initialise(module.network, weights, first)}")
    scores = fit(config, module, cohort, folder, title, device.type, precision)
    print(f"{title}: {summarise(scores)}, {folder.best}")


def read_cohort(data: Config, stage: str) -> tuple[list[Case], Split]:
    """The cases of the configuration, and how they are dealt into folds."""
    cohort = find_cohort(data["root"], data["exclude"])
    cases = with_head_mask(cohort, Path(data["heads"])) if stage == "head" else cohort
    if not data["split"]:
        return cases, Split.make(cases, data["folds"], data["split_seed"])
    if data["split"] == CENTRES:
        return cases, Split.leave_one_center_out(cohort).only(cases)
    here = Path(data["split"])  # relative to the working directory or to the repository
    here = here if here.exists() else Path(__file__).parent / here
    return cases, Split.read(here, cohort).only(cases)


def build_cohort(
    config: Config,
    cfg: DictConfig,
    fold: tuple[list[Case], list[Case]],
    coarse: Path | None,
    stage: Stage,
    spec: InputSpec,
) -> StageDataModule:
    """Cached volumes and patches of one fold."""
    from hydra.utils import instantiate

    from hnseg.data.datamodule import StageDataModule
    from hnseg.job import jitter_mm, scan_augment

    augment = instantiate(cfg.augment)
    training, data = config["training"], config["data"]
    iterations = training["iterations"]
    return StageDataModule(
        *fold,
        stage=stage,
        spec=spec,
        patch=tuple(training["patch"]),
        batch_size=training["batch_size"],
        samples=iterations and iterations * training["batch_size"],
        cache=Path(data["cache"]),
        heads=head_folder(data, stage.name),
        coarse=coarse,
        train_roi=config["recipe"]["roi"]["train"],
        augment=augment,
        scan_augment=scan_augment(config, stage),
        jitter_mm=jitter_mm(config, stage),
        workers=data["workers"],
        prepare_workers=data["prepare_workers"],
        seed=config["seed"],
    )


def build_module(
    config: Config, cfg: DictConfig, stage: Stage, card: Config, precision: Precision
) -> SegmentationModule:
    """Network, loss, optimiser and schedule of the configuration."""
    from hydra.utils import instantiate

    from hnseg.inference.predictor import Predictor
    from hnseg.models.module import SegmentationModule
    from hnseg.models.nets import build

    return SegmentationModule(
        build(**card["network"]),
        instantiate(cfg.loss),
        Predictor.of(card, precision=precision),
        instantiate(cfg.optimizer.step),
        instantiate(cfg.optimizer.schedule),
        classes=stage.classes,
        spacing=stage.spacing,
        card=card,
    )


def fit(
    config: Config,
    module: SegmentationModule,
    cohort: StageDataModule,
    folder: RunFolder,
    title: str,
    accelerator: str,
    precision: Precision,
) -> dict[str, float]:
    """Trains, from the last checkpoint where there is one, and returns the best one's scores."""
    import lightning as L

    from hnseg.hardware import LIGHTNING
    from hnseg.progress import ProgressFile, RunProgress
    from hnseg.tracking import loggers
    from hnseg.tracking.callbacks import callbacks
    from hnseg.training import checkpoints, step_of, validation_scores

    training = config["training"]
    provenance = {key: module.card[key] for key in ("split", "fingerprint")} | {"data": cohort.digest()}
    with loggers(folder.path, config, provenance=provenance, step=step_of(folder.last)) as logger:
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=LIGHTNING[precision],  # type: ignore[arg-type]
            max_epochs=training["epochs"],
            gradient_clip_val=config["optimizer"]["clip"],
            check_val_every_n_epoch=training["validate_every"],
            deterministic=config["trainer"]["deterministic"],
            logger=logger,
            callbacks=[
                *checkpoints(
                    folder.path,
                    training["ema"],
                    compare=config["recipe"]["checkpoint"] == "compare",
                    monitor=monitored(config, cohort),
                ),
                RunProgress(title),
                *callbacks(folder.path, LoggerSettings(**config["logger"]), cohort.spec),
                ProgressFile(folder.progress, folder.best),
            ],
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, cohort, ckpt_path=folder.last if folder.last.exists() else None)
        except SystemExit:  # what Lightning makes of Ctrl-C; it ends a whole sweep
            print(f"{title}: stopped; the same command goes on where it stopped", file=sys.stderr)
            raise
    scores = validation_scores(folder.best)
    folder.finish(scores)
    return scores


def monitored(config: Config, cohort: StageDataModule) -> str:
    """The score that chooses best.ckpt."""
    wants_coarse = config["recipe"]["roi"]["validate"] == "coarse"
    return "val_coarse/dice" if wants_coarse and cohort.coarse is not None else "val/dice"


if __name__ == "__main__":
    run(main, config_name="train")
