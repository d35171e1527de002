"""From a configuration, as plain lists and numbers, to the data module and the Lightning module of a job."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hnseg.construct import construct
from hnseg.data.datamodule import StageDataModule, choose_loading
from hnseg.data.dataset import Shard
from hnseg.data.intensity import InputSpec
from hnseg.devices import Precision, pick_device, pick_precision
from hnseg.errors import HnsegError
from hnseg.imaging.stage import Stage
from hnseg.inference.predictor import Predictor
from hnseg.job import jitter_mm, scan_augment
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import build, checkpoint_blocks
from hnseg.training.cohort import Fold, head_folder
from hnseg.training.extension import make_scheduler
from hnseg.training.run_folder import Length
from hnseg.training.team import ALONE, Team

Config = dict[str, Any]


def pick_machine(config: Config, team: Team = ALONE) -> tuple[torch.device, Precision]:
    """The device and arithmetic of a training, whose threads are set: a team's share of them.

    Raises:
        HnsegError: They are not to be had here, or the mix is to run on a GPU that does not train.
    """
    trainer = config["trainer"]
    if trainer["threads"] or team.size > 1:
        torch.set_num_threads(trainer["threads"] or _share_of_threads(team))
    device = pick_device(trainer["device"])
    if config["augment"].get("device") == "cuda" != device.type:
        raise HnsegError("augment.device=cuda: the processor trains here; choose augment.device=cpu")
    return device, pick_precision(device, trainer["precision"])


def _share_of_threads(team: Team) -> int:
    """A member's. torchrun and SLURM may have given each its own; asked again, it is the same."""
    own = torch.get_num_threads()
    together = own if team.spread else os.cpu_count() or 1
    return max(1, min(own, together // team.local_size))


def build_cohort(
    config: Config, fold: Fold, stage: Stage, spec: InputSpec, device: torch.device, team: Team = ALONE
) -> StageDataModule:
    """Cached volumes and patches of one fold, or a team member's share of them, loaded as the machine has it.

    Raises:
        HnsegError: `data.workers` is no count.
    """
    augment = construct(config["augment"], "augment")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    training, data = config["training"], config["data"]
    iterations = training["iterations"]
    return StageDataModule(
        fold.train,
        fold.validation,
        stage=stage,
        spec=spec,
        patch=tuple(training["patch"]),
        batch_size=training["batch_size"],
        accumulate=config["trainer"]["accumulate"],
        shard=Shard(team.rank, team.size),
        samples=iterations and iterations * training["batch_size"],
        cache=Path(data["cache"]),
        heads=head_folder(data, stage.name),
        coarse=fold.coarse,
        train_roi=config["recipe"]["roi"]["train"],
        augment=augment,
        scan_augment=scan_augment(config, stage),
        jitter_mm=jitter_mm(config, stage),
        loading=choose_loading(
            data["workers"],
            gpus=gpus,
            processes=team.local_size,
            batch_bytes=_batch_bytes(config, spec, team),
        ),
        prepare_workers=data["prepare_workers"],
        seed=config["seed"],
    )


def _batch_bytes(config: Config, spec: InputSpec, team: Team) -> int:
    """Of what the loaders make: float32 channels and labels of eight bytes."""
    training = config["training"]
    patches = training["batch_size"] // config["trainer"]["accumulate"] // team.size
    return patches * math.prod(training["patch"]) * (4 * spec.channels + 8)


def build_module(
    config: Config, stage: Stage, card: Config, precision: Precision, lengths: Sequence[Length] = ()
) -> SegmentationModule:
    """Network, loss, optimiser and schedule of the configuration.

    Args:
        config: The composed configuration.
        stage: The stage.
        card: Of `hnseg.job.describe`.
        precision: Of the validation.
        lengths: Of the run before it was made longer.
    """
    network = build(**card["network"])
    if config["trainer"]["checkpointing"]:
        checkpoint_blocks(network)
    return SegmentationModule(
        network,
        construct(config["loss"], "loss"),
        Predictor.of(card, precision=precision),
        construct(config["optimizer"]["step"], "optimizer.step"),
        make_scheduler(config, lengths),
        classes=stage.classes,
        spacing=stage.spacing,
        card=card,
        translate=config["trainer"]["compile"],
    )
