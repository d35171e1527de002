"""Train one stage with one network on one fold: data module, module, callbacks, loggers, trainer, fit."""

from __future__ import annotations

import math
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hnseg.config import LoggerSettings, Node
from hnseg.config import build as construct
from hnseg.data.augment import Compose
from hnseg.data.datamodule import StageDataModule, choose_loading
from hnseg.data.dataset import Shard
from hnseg.data.intensity import InputSpec
from hnseg.devices import LIGHTNING, Precision, pick_device, pick_precision
from hnseg.errors import HnsegError
from hnseg.files import lock
from hnseg.imaging.stage import Stage
from hnseg.inference.predictor import Predictor
from hnseg.job import describe, jitter_mm, make_input, make_stage, scan_augment
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import build, checkpoint_blocks
from hnseg.processes import follow, silence_libraries
from hnseg.training.callbacks import NonFiniteGuard, ProgressFile, RunProgress, SigtermStop
from hnseg.training.checkpoints import (
    RunCheckpoints,
    checkpoint_callbacks,
    find_checkpoint,
    require_same_data,
    step_of,
    summarise,
    validation_scores,
)
from hnseg.training.cohort import Fold, head_folder
from hnseg.training.launch import ALONE, Processes
from hnseg.training.loggers import callbacks, loggers, require_loggers
from hnseg.training.pretrained import initialise, read_weights
from hnseg.training.run_folder import RunFolder

Config = dict[str, Any]


def train(
    config: Config, folder: RunFolder, title: str, fold: Fold, processes: Processes
) -> dict[str, float]:
    """Trains a network on the cases of one fold, from the run's last checkpoint where there is one.

    Every process of the training runs this function.

    Args:
        config: The composed configuration, checked.
        folder: The run's, locked by rank 0.
        title: Names the run in what is printed.
        fold: The cases.
        processes: Those that train together.

    Returns:
        The validation scores of best.ckpt.

    Raises:
        HnsegError: Device, weights, data or loggers cannot be used, or the loss became NaN.
    """
    silence_libraries()
    if processes.child:
        follow(os.getppid())
    device, precision = pick_machine(config)
    stage = make_stage(config)
    resume = None if config["overwrite"] else find_checkpoint(folder.last, folder.previous, processes.rank)
    first = Path(config["init_from"]["path"]) if config["init_from"] and resume is None else None
    weights = read_weights(first) if first else {}
    require_loggers(LoggerSettings(**config["logger"]))
    if processes.rank == 0 and resume is None:  # so that `hnseg runs` shows it while volumes are prepared
        folder.begin(config, split=fold.split, overwrite=config["overwrite"])

    datamodule = make_datamodule(config, fold, stage, make_input(config, stage), device, processes)
    together = f"{processes.size} processes, each on " if processes.size > 1 else ""
    processes.say(f"{title}: {together}{device.type} in {precision}, {datamodule.loading}")
    card = prepare_card(config, fold, stage, datamodule, processes)
    if resume is not None:
        require_same_data(resume, card)
        if processes.rank == 0:
            folder.begin(config, split=fold.split)
    # After what the cache may spare a run: transforms that measure the fold draw random numbers too.
    L.seed_everything(config["seed"], workers=True, verbose=False)
    module = make_module(config, stage, card, precision)
    if first:
        processes.say(f"{title}: {first}: {initialise(module.network, weights, first)}")
    if processes.size > 1:
        torch.manual_seed(config["seed"] + processes.rank)  # of what devices draw by themselves
    watchers = make_callbacks(config, datamodule, folder, title, processes)
    provenance = {key: card[key] for key in ("split", "fingerprint", "data")}
    with loggers(folder.path, config, provenance, step_of(resume), processes.rank) as log:
        trainer = L.Trainer(
            **trainer_options(config, device, precision, processes),
            default_root_dir=folder.path,
            max_epochs=config["training"]["epochs"],
            check_val_every_n_epoch=config["training"]["validate_every"],
            plugins=[RunCheckpoints(folder), _environment(processes)],
            logger=log,
            callbacks=watchers,
        )
        try:
            trainer.fit(module, datamodule, ckpt_path=resume)
        except SystemExit as end:  # Lightning's answer to Ctrl-C and SIGTERM; it ends a whole sweep
            if end.code == 0:  # rank 0 says why
                raise
            if processes.rank == 0:
                print(f"{title}: stopped; the same command goes on where it stopped", file=sys.stderr)
            number = signal.SIGTERM if isinstance(end, SIGTERMException) else signal.SIGINT
            raise SystemExit(128 + number) from end
    scores = validation_scores(folder.best)
    if processes.rank == 0:
        folder.finish(scores)
    processes.say(f"{title}: {summarise(scores)}, {folder.best}")
    return scores


def pick_machine(config: Config) -> tuple[torch.device, Precision]:
    """The device and arithmetic of a training; sets the number of CPU threads.

    Raises:
        HnsegError: This machine has no such device, or augment.device is another.
    """
    trainer = config["trainer"]
    if trainer["threads"]:
        torch.set_num_threads(trainer["threads"])
    device = pick_device(trainer["device"])
    if config["augment"].get("device") == "cuda" != device.type:
        raise HnsegError("augment.device=cuda: the processor trains here; choose augment.device=cpu")
    return device, pick_precision(device, trainer["precision"])


def make_datamodule(
    config: Config,
    fold: Fold,
    stage: Stage,
    spec: InputSpec,
    device: torch.device,
    processes: Processes = ALONE,
) -> StageDataModule:
    """Cached volumes and patches of one fold; of several processes, this one's share."""
    training, data, accumulate = config["training"], config["data"], config["trainer"]["accumulate"]
    patches = training["batch_size"] // accumulate // processes.size
    # Patches are float32 channels and labels of one byte.
    batch_bytes = patches * math.prod(training["patch"]) * (4 * spec.channels + 1)
    return StageDataModule(
        fold.train,
        fold.validation,
        stage=stage,
        spec=spec,
        patch=tuple(training["patch"]),
        batch_size=training["batch_size"],
        accumulate=accumulate,
        shard=Shard(processes.rank, processes.size),
        samples=training["iterations"] and training["iterations"] * training["batch_size"],
        cache=Path(data["cache"]),
        heads=head_folder(data, stage.name),
        coarse=fold.coarse,
        train_roi=config["recipe"]["roi"]["train"],
        augment=_mix(config, stage),
        scan_augment=scan_augment(config, stage),
        jitter_mm=jitter_mm(config, stage),
        loading=choose_loading(
            data["workers"],
            gpus=torch.cuda.device_count() if device.type == "cuda" else 0,
            processes=processes.local,
            batch_bytes=batch_bytes,
        ),
        prepare_workers=data["prepare_workers"],
        seed=config["seed"],
    )


def _mix(config: Config, stage: Stage) -> Compose:
    mix = config["augment"]["transforms"] | config["augment"]["stages"].get(stage.name, {})
    nodes = {name: Node(**node) for name, node in mix.items() if node}
    transforms = {name: construct(node, f"augment.transforms.{name}") for name, node in nodes.items()}
    return Compose(transforms, config["augment"]["device"])


def prepare_card(
    config: Config, fold: Fold, stage: Stage, datamodule: StageDataModule, processes: Processes
) -> Config:
    """Prepares the fold's volumes, and describes the network to be trained on them.

    Processes that torchrun or SLURM started take turns: the first prepares, the others use its cache.
    """
    datamodule.cache.mkdir(parents=True, exist_ok=True)
    with nullcontext() if processes.launcher == "lightning" else lock(datamodule.cache, wait=True):
        fingerprint = datamodule.fingerprint()
        data = datamodule.digest()
    return describe(
        config,
        stage,
        datamodule.spec,
        split=fold.split.hash,
        fingerprint=fingerprint and fingerprint.hash,
        data=data,
        trained_on=[case.case_id for case in fold.train],
    )


def make_module(config: Config, stage: Stage, card: Config, precision: Precision) -> SegmentationModule:
    """Network, loss, optimiser and schedule of the configuration.

    Args:
        config: The composed configuration.
        stage: The stage.
        card: Of `hnseg.job.describe`.
        precision: Of the validation.
    """
    network = build(**card["network"])
    if config["trainer"]["checkpointing"]:
        checkpoint_blocks(network)
    return SegmentationModule(
        network,
        construct(Node(**config["loss"]), "loss"),
        Predictor.of(card, precision=precision),
        construct(Node(**config["optimizer"]["step"]), "optimizer.step"),
        construct(Node(**config["optimizer"]["schedule"]), "optimizer.schedule"),
        classes=stage.classes,
        spacing=stage.spacing,
        card=card,
        compile_network=config["trainer"]["compile"],
    )


def make_callbacks(
    config: Config, datamodule: StageDataModule, folder: RunFolder, title: str, processes: Processes
) -> list[L.Callback]:
    """Checkpoints and guards of every process; progress and what is logged beside losses, of rank 0."""
    ema, compare = config["training"]["ema"], config["recipe"]["checkpoint"] == "compare"
    coarse = config["recipe"]["roi"]["validation"] == "coarse" and datamodule.coarse is not None
    monitor = "val_coarse/dice" if coarse else "val/dice"
    shared = [
        *checkpoint_callbacks(folder.path, ema, compare=compare, monitor=monitor),
        NonFiniteGuard(folder.path),
        SigtermStop(),
    ]
    if processes.rank > 0:
        return shared
    watchers = callbacks(folder.path, LoggerSettings(**config["logger"]), datamodule.spec)
    return [*shared, RunProgress(title), *watchers, ProgressFile(folder.progress, folder.best)]


def trainer_options(
    config: Config, device: torch.device, precision: Precision, processes: Processes = ALONE
) -> dict[str, Any]:
    """What a job's training steps are like, as arguments of Lightning's Trainer."""
    settings = config["trainer"]
    # Deep supervision by nnU-Net's weights leaves the head of the lowest resolution without a gradient.
    ddp = DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    return {
        "accelerator": device.type,
        "devices": processes.local,
        "num_nodes": processes.nodes,
        "strategy": ddp if processes.size > 1 else "auto",
        "use_distributed_sampler": False,  # the data module gives each rank its part of every batch
        "precision": LIGHTNING[precision],
        "gradient_clip_val": config["optimizer"]["clip"],
        "accumulate_grad_batches": settings["accumulate"],
        "deterministic": settings["deterministic"],
        "benchmark": not settings["deterministic"],  # patches are all of one size
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _environment(processes: Processes) -> ClusterEnvironment:
    """Where a process finds its rank and the others.

    A single process has Lightning's own environment under SLURM too: on SLURM's signals Lightning would write
    hpc_ckpt_1.ckpt, and load it in whichever run starts beside it.
    """
    if processes.launcher == "slurm":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if processes.launcher == "torchrun" else LightningEnvironment()
