"""Trainings to compare: ours by Lightning as train.py sets it, and what nnU-Net and Auto3DSeg train with."""

from collections.abc import Callable, Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from monai.optimizers import WarmupCosineSchedule
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hnseg.models.module import SegmentationModule
from hnseg.processes import silence_libraries

Batches = Sequence[dict[str, Tensor]]
Trainers = Callable[[str], nnUNetTrainer]


class Rates(L.Callback):
    """Writes down the learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def train(cfg: DictConfig, network: nn.Module, loss: nn.Module, batches: Batches) -> list[float]:
    """Trains by the configured optimiser, schedule and clip; the rates of all steps."""
    silence_libraries()
    module = SegmentationModule(
        network,
        loss,
        lambda network, image: network(image),
        instantiate(cfg.optimizer.step),
        instantiate(cfg.optimizer.schedule),
        classes=("GTVp", "GTVn"),
        spacing=(1.0, 1.0, 1.0),
        card={},
    )
    rates = Rates()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=cfg.training.epochs,
        gradient_clip_val=cfg.optimizer.clip,
        callbacks=[rates],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return rates.seen


def nnunet_trainer(nnunet: Trainers, network: nn.Module, epochs: int) -> nnUNetTrainer:
    """nnU-Net's trainer of this many epochs, on a network, silent."""
    trainer = copy(nnunet("coarse"))
    trainer.print_to_log_file = lambda *_, **__: None
    trainer.logger = SimpleNamespace(log=lambda *_: None)
    trainer.num_epochs, trainer.network = epochs, network
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    return trainer


def auto3dseg_optimiser(network: nn.Module, epochs: int) -> tuple[torch.optim.Optimizer, Any]:
    """How Auto3DSeg's segresnet template sets AdamW and its schedule."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=1e-5)
    schedule = WarmupCosineSchedule(optimiser, warmup_steps=3, warmup_multiplier=0.1, t_total=epochs)
    return optimiser, schedule
