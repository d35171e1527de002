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
from hnseg.data.splits import Split
from hnseg.errors import HnsegError
from hnseg.hydra_app import run
from hnseg.preflight import check_patch, find_cohort, padding
from hnseg.run_folder import RunFolder


def main(cfg: DictConfig) -> float:
    """Composes, checks, fits, and returns the validation Dice of the best checkpoint."""
    patch = None if OmegaConf.is_missing(cfg.training, "patch") else list(cfg.training.patch)
    check_patch(patch, cfg.model, cfg.stage.name)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    cases, split = read_cohort(config["data"])
    train, validation = split.assign(cases, config["fold"])
    folder = RunFolder(Path(config["run_dir"]))
    state = folder.begin(config, overwrite=config["overwrite"])
    title = f"{config['arm']} fold {config['fold']}"
    if state == "finished":
        print(f"{title}: finished before, {folder.path} (overwrite=true trains it anew)")
        return folder.scores()["val/dice"]
    split.write(folder.path / "split.json")
    scores = fit(config, cfg, train, validation, split, folder, title)
    print(f"{title}: val/dice {scores['val/dice']:.4f}, {folder.best}")
    return scores["val/dice"]


def read_cohort(data: dict[str, Any]) -> tuple[list[Case], Split]:
    """The cases of the configuration, and how they are dealt into folds."""
    cases = find_cohort(data["root"], data["exclude"])
    if data["split"]:  # relative to here or to the repository, whichever holds it
        here = Path(data["split"])
        path = here if here.exists() else Path(__file__).parent / here
        return cases, Split.read(path, cases)
    return cases, Split.make(cases, data["folds"], data["split_seed"])


def fit(
    config: dict[str, Any],
    cfg: DictConfig,
    train: list[Case],
    validation: list[Case],
    split: Split,
    folder: RunFolder,
    title: str,
) -> dict[str, float]:
    """Trains and returns the best checkpoint's validation scores. Everything heavy is imported here."""
    import lightning as L
    import torch
    from hydra.utils import instantiate

    from hnseg.data.datamodule import StageDataModule
    from hnseg.data.intensity import InputSpec
    from hnseg.hardware import LIGHTNING, pick_device, pick_precision
    from hnseg.inference.predictor import Predictor
    from hnseg.models.module import SegmentationModule
    from hnseg.models.nets import build
    from hnseg.progress import RunProgress
    from hnseg.stage import Stage
    from hnseg.tracking import loggers
    from hnseg.training import checkpoints, quiet, validation_scores

    quiet()
    trainer, training, data = config["trainer"], config["training"], config["data"]
    L.seed_everything(config["seed"], workers=True, verbose=False)
    if trainer["threads"]:
        torch.set_num_threads(trainer["threads"])
    device = pick_device(trainer["device"])
    precision = pick_precision(device, trainer["precision"])
    stage = Stage.from_dict(config["stage"])
    patch = tuple(training["patch"])
    recipe = config["recipe"]
    spec = InputSpec(
        modalities=("ct",) if stage.name == "head" else ("ct", "pet"),
        ct_window=tuple(recipe["ct_window"]),
        cte=config["cte"],
        pet=recipe["pet"],
        pet_upper=recipe["pet_upper"],
        normalise=recipe["normalise"],
        pad_to=padding(patch, stage.shape),
    )
    iterations = training["iterations"]
    cohort = StageDataModule(
        train,
        validation,
        stage=stage,
        spec=spec,
        patch=patch,
        batch_size=training["batch_size"],
        samples=iterations and iterations * training["batch_size"],
        cache=Path(data["cache"]),
        heads=Path(data["heads"]),
        augment=instantiate(cfg.augment),
        jitter_mm=recipe["jitter_mm"] if stage.placement == "lesions" else 0.0,
        workers=data["workers"],
        prepare_workers=data["prepare_workers"],
        seed=config["seed"],
    )
    network = {
        "architecture": config["model"]["architecture"],
        "in_channels": spec.channels,
        "out_channels": len(stage.classes) + 1,
        **config["model"]["settings"],
    }
    module = SegmentationModule(
        build(**network),
        instantiate(cfg.loss),
        Predictor(patch, precision=precision),
        instantiate(cfg.optimizer.step),
        instantiate(cfg.optimizer.schedule),
        classes=stage.classes,
        spacing=stage.spacing,
        card={
            "name": f"{config['arm']}_fold_{config['fold']}",
            "model": config["model"]["name"],
            "fold": config["fold"],
            "stage": config["stage"],
            "input": spec.to_dict(),
            "network": network,
            "patch": list(patch),
            "recipe": recipe["name"],
            "decision": recipe["decision"],
            "split": split.hash,
            "trained_on": [case.case_id for case in train],
        },
    )
    with loggers(folder.path, config, arm=config["arm"], group=config["name"], **config["logger"]) as logger:
        runner = L.Trainer(
            accelerator=device.type,
            devices=1,
            precision=LIGHTNING[precision],  # type: ignore[arg-type]
            max_epochs=training["epochs"],
            gradient_clip_val=config["optimizer"]["clip"],
            check_val_every_n_epoch=training["validate_every"],
            deterministic=trainer["deterministic"],
            logger=logger,
            callbacks=[*checkpoints(folder.path, training["ema"]), RunProgress(title)],
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        runner.fit(module, cohort, ckpt_path=folder.last if folder.last.exists() else None)
        if runner.interrupted:
            raise HnsegError(f"{title}: stopped; the same command goes on from {folder.last}")
        scores = validation_scores(runner, folder.best)
    folder.finish(scores)
    return scores


if __name__ == "__main__":
    run(main, config_name="train")
