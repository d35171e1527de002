"""Train one stage with one network on one fold: data module, module, callbacks, loggers, trainer, fit."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

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

from hnseg.card import Card, Stage, plain
from hnseg.config import Job, build, building
from hnseg.data.augment import Compose, RandomHeadTruncation
from hnseg.data.datamodule import StageDataModule, choose_loading
from hnseg.data.dataset import Shard
from hnseg.devices import LIGHTNING, Precision, pick_device, pick_precision
from hnseg.errors import HnsegError
from hnseg.files import lock
from hnseg.inference.predictor import Predictor
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import Network, checkpoint_blocks, stride_product
from hnseg.models.nets import build as build_network
from hnseg.processes import follow, silence_libraries
from hnseg.training.callbacks import GateWeights, NonFiniteGuard, RunProgress, SigtermStop, Throughput
from hnseg.training.checkpoints import (
    RunCheckpoints,
    checkpoint_callbacks,
    find_checkpoint,
    require_same_data,
    step_of,
    validation_scores,
)
from hnseg.training.cohort import Fold, head_folder
from hnseg.training.curves import Curves
from hnseg.training.launch import ALONE, Processes
from hnseg.training.loggers import loggers, require_loggers
from hnseg.training.pictures import Pictures
from hnseg.training.pretrained import initialise, read_weights
from hnseg.training.runs import RunFolder

Config = dict[str, Any]


def train(
    job: Job, settings: Config, folder: RunFolder, title: str, fold: Fold, processes: Processes
) -> dict[str, float]:
    """Trains a network on the cases of one fold, from the run's last checkpoint where there is one.

    Args:
        job: The configuration.
        settings: What config.json holds of it.
        folder: The run's, locked by rank 0.
        title: Names the run in what is printed.
        fold: The cases.
        processes: Those that train together, each of which runs this function.

    Returns:
        The validation scores of best.ckpt.
    """
    silence_libraries()
    if processes.child:
        follow(os.getppid())
    device, precision = pick_machine(job)
    check_components(job)
    require_loggers(job.logger)
    resume = None if job.overwrite else find_checkpoint(folder, processes.rank)
    weights = read_weights(job.init_from) if job.init_from and resume is None else {}
    if processes.rank == 0:  # before volumes are prepared, so that `hnseg runs` shows it
        folder.begin(settings, fold.split, overwrite=job.overwrite)

    datamodule = make_datamodule(job, fold, device, processes)
    together = f"{processes.size} processes, each on " if processes.size > 1 else ""
    processes.say(f"{title}: {together}{device.type} in {precision}, {datamodule.loading}")
    card = prepare_card(job, fold, datamodule, processes)
    if resume is not None:
        require_same_data(resume, card)
    # After what the cache may spare a run: transforms that measure the fold draw random numbers too.
    L.seed_everything(job.seed, workers=True, verbose=False)
    module = make_module(job, card, precision)
    if weights:
        processes.say(f"{title}: {job.init_from}: {initialise(module.network, weights, str(job.init_from))}")
    if processes.size > 1:
        _freeze_unsupervised_heads(module)
        torch.manual_seed(job.seed + processes.rank)  # of what devices draw by themselves
    callbacks = make_callbacks(job, datamodule, folder, title, processes)
    provenance = {"split": card.split, "fingerprint": card.fingerprint, "data": card.data}
    provenance["init_from"] = settings["init_from"] and settings["init_from"]["sha256"]
    with loggers(folder, job, provenance, step_of(resume), processes.rank) as log:
        trainer = L.Trainer(
            **trainer_options(job, device, precision, processes),
            default_root_dir=folder.path,
            plugins=[RunCheckpoints(folder), _environment(processes)],
            logger=log,
            callbacks=callbacks,
        )
        with _stopping(title, processes):
            trainer.fit(module, datamodule, ckpt_path=resume)
    scores = validation_scores(folder.best)
    if processes.rank == 0:
        folder.finish(scores)
    processes.say(f"{title}: {_summary(scores, job.stage)}, {folder.best}")
    return scores


@contextmanager
def _stopping(title: str, processes: Processes) -> Iterator[None]:
    """Ends the process as a shell expects it after Ctrl-C (130) and SIGTERM (143)."""
    try:
        yield
    except SystemExit as end:  # Lightning's answer to both; it ends a whole sweep
        if end.code == 0:  # rank 0 says why
            raise
        if processes.rank == 0:
            print(f"{title}: stopped; the same command goes on where it stopped", file=sys.stderr)
        number = signal.SIGTERM if isinstance(end, SIGTERMException) else signal.SIGINT
        raise SystemExit(128 + number) from end


def pick_machine(job: Job) -> tuple[torch.device, Precision]:
    """The device and arithmetic of a training; sets the number of CPU threads."""
    if job.trainer.threads:
        torch.set_num_threads(job.trainer.threads)
    device = pick_device(job.trainer.device)
    if job.augment.device == "cuda" != device.type:
        raise HnsegError("augment.device=cuda: the processor trains here; choose augment.device=cpu")
    return device, pick_precision(device, job.trainer.precision)


def check_components(job: Job) -> None:
    """Builds what the configuration names, so that a mistake shows before volumes are prepared."""
    patch, product = job.training.patch, stride_product(plain(job.model.settings))
    # A single voxel at the deepest stage has no variance for the instance norm.
    if any(n % d for n, d in zip(patch, product, strict=True)) or patch == product:
        fitting = [max(math.ceil(n / d), 2) * d for n, d in zip(patch, product, strict=True)]
        raise HnsegError(
            f"training.patch={list(patch)} does not fit model={job.model.name}, whose sides (z, y, x) must "
            f"be multiples of {list(product)}, and not all the least; use training.patch={fitting}"
        )
    with torch.device("meta"):
        network = build_network(**job.card(job.input_spec).network)
    optimizer = build(job.optimizer.step, "optimizer.step")(network.parameters())
    build(job.optimizer.schedule, "optimizer.schedule")(optimizer)
    loss, classes = build(job.loss, "loss"), len(job.stage.classes) + 1
    with building(f"loss for background, {', '.join(job.stage.classes)}"):
        loss(torch.zeros(1, classes, 2, 2, 2), torch.zeros(1, 2, 2, 2).long())
    make_augment(job)
    make_scan_augment(job)


def make_augment(job: Job) -> Compose:
    """The transforms of patches."""
    own, transforms = job.augment.stages.get(job.stage.name, {}), {}
    for name, node in job.augment.of(job.stage.name).items():
        key = f"stages.{job.stage.name}" if name in own else "transforms"
        transforms[name] = build(node, f"augment.{key}.{name}")
    return Compose(transforms, job.augment.device)


def make_scan_augment(job: Job) -> Compose | None:
    """The transforms of scans before they become channels; None if there are none.

    The localiser sees scans without a head as often as `recipe.head_truncation` says.
    """
    transforms = {name: build(node, f"scan_augment.{name}") for name, node in job.scan_augment.items()}
    if job.stage.name == "localiser" and job.recipe.head_truncation:
        transforms = {"head_truncation": RandomHeadTruncation(p=job.recipe.head_truncation), **transforms}
    return Compose(transforms) if transforms else None


def make_datamodule(
    job: Job, fold: Fold, device: torch.device, processes: Processes = ALONE
) -> StageDataModule:
    """Cached volumes and patches of one fold; of several processes, this one's share."""
    training, data, accumulate, spec = job.training, job.data, job.trainer.accumulate, job.input_spec
    patches = training.batch_size // accumulate // processes.size
    # Patches are float32 channels and labels of one byte.
    batch_bytes = patches * math.prod(training.patch) * (4 * spec.channels + 1)
    return StageDataModule(
        fold.train,
        fold.validation,
        stage=job.placed_stage,
        spec=spec,
        patch=training.patch,
        batch_size=training.batch_size,
        accumulate=accumulate,
        shard=Shard(processes.rank, processes.size),
        samples=training.iterations and training.iterations * training.batch_size,
        cache=data.cache,
        heads=head_folder(data, job.stage.name),
        coarse=fold.coarse,
        train_roi=job.recipe.roi.train,
        augment=make_augment(job),
        scan_augment=make_scan_augment(job),
        jitter_mm=job.jitter_mm,
        loading=choose_loading(
            data.workers,
            gpus=torch.cuda.device_count() if device.type == "cuda" else 0,
            processes=processes.local,
            batch_bytes=batch_bytes,
        ),
        prepare_workers=data.prepare_workers,
        seed=job.seed,
    )


def prepare_card(job: Job, fold: Fold, datamodule: StageDataModule, processes: Processes) -> Card:
    """Prepares the fold's volumes, and describes the network to be trained on them.

    Processes that torchrun or SLURM started take turns: the first prepares, the others use its cache.
    """
    datamodule.cache.mkdir(parents=True, exist_ok=True)
    with nullcontext() if processes.launcher == "lightning" else lock(datamodule.cache, wait=True):
        datamodule.prepare_data()
        fingerprint = datamodule.fingerprint()
        data = datamodule.digest()
    return job.card(
        datamodule.spec,
        split=fold.split.hash,
        fingerprint=fingerprint and fingerprint.hash,
        data=data,
        trained_on=tuple(case.case_id for case in fold.train),
        trained_on_ct=datamodule.training_scans(),
    )


def make_module(job: Job, card: Card, precision: Precision) -> SegmentationModule:
    """Network, loss, optimiser and schedule of the configuration; `precision` is the validation's."""
    network = build_network(**card.network)
    if job.trainer.checkpointing:
        checkpoint_blocks(network)
    return SegmentationModule(
        network,
        build(job.loss, "loss"),
        Predictor.of(card, precision=precision),
        build(job.optimizer.step, "optimizer.step"),
        build(job.optimizer.schedule, "optimizer.schedule"),
        classes=job.stage.classes,
        spacing=job.stage.spacing,
        card=card,
        compile_network=job.trainer.compile,
    )


def make_callbacks(
    job: Job, datamodule: StageDataModule, folder: RunFolder, title: str, processes: Processes
) -> list[L.Callback]:
    """Checkpoints and guards of every process; progress and what is logged beside losses, of rank 0."""
    monitor = "val/dice"
    if job.recipe.roi.validation == "coarse" and job.stage.placement == "lesions":
        if datamodule.coarse is not None:
            monitor = "val_coarse/dice"
        else:
            processes.say(
                f"{title}: recipe.roi.validation=coarse without data.coarse: val/dice, in ROIs placed by the "
                "ground truth, chooses best.ckpt"
            )
    ema, compare = job.training.ema, job.recipe.checkpoint == "compare"
    shared = [
        *checkpoint_callbacks(folder.path, ema, compare=compare, monitor=monitor),
        NonFiniteGuard(folder.path),
        SigtermStop(),
    ]
    if processes.rank > 0:
        return shared
    spec, paints = datamodule.spec, job.logger.paints
    pictures = [Pictures(folder.path, spec.channel_names, job.logger.pictures_every)] if paints else []
    drawn = [Curves(folder, title), *pictures]
    return [*shared, RunProgress(title, folder), Throughput(), GateWeights(spec.channel_keys), *drawn]


def trainer_options(
    job: Job, device: torch.device, precision: Precision, processes: Processes = ALONE
) -> dict[str, Any]:
    """What a job's training is like, as arguments of Lightning's Trainer."""
    ddp = DDPStrategy(gradient_as_bucket_view=True)
    return {
        "max_epochs": job.training.epochs,
        "check_val_every_n_epoch": job.training.validate_every,
        "accelerator": device.type,
        "devices": processes.local,
        "num_nodes": processes.nodes,
        "strategy": ddp if processes.size > 1 else "auto",
        "use_distributed_sampler": False,  # the data module gives each rank its part of every batch
        "precision": LIGHTNING[precision],
        "gradient_clip_val": job.optimizer.clip,
        "accumulate_grad_batches": job.trainer.accumulate,
        "deterministic": job.trainer.deterministic,
        "benchmark": not job.trainer.deterministic,  # patches are all of one size
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _freeze_unsupervised_heads(module: SegmentationModule) -> None:
    """Takes the gradients off heads whose weight in deep supervision is 0, which DDP would wait for.

    The loss does not depend on them, and no process trains them: nnU-Net's head of the lowest resolution.
    """
    heads = cast(Network, module.network).heads()
    for head, weight in zip(heads, module.loss.depth_weights(len(heads)), strict=True):
        head.requires_grad_(weight > 0)


def _environment(processes: Processes) -> ClusterEnvironment:
    """Where a process finds its rank and the others.

    A single process has Lightning's own environment under SLURM too: on SLURM's signals Lightning would write
    hpc_ckpt_1.ckpt, and load it in whichever run starts beside it.
    """
    if processes.launcher == "slurm":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if processes.launcher == "torchrun" else LightningEnvironment()


def _summary(scores: dict[str, float], stage: Stage) -> str:
    """The validation Dice, and in which ROIs: those placed by the ground truth flatter the pipeline."""
    text = f"val/dice {scores['val/dice']:.4f}"
    if stage.placement == "lesions":
        text += " in ROIs placed by the ground truth"
    if "val_coarse/dice" in scores:
        text += f", {scores['val_coarse/dice']:.4f} in ROIs placed by coarse predictions"
    return text
