"""The Lightning module: steps, optimiser, schedule, scores; nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hnseg.card import Card, plain
from hnseg.metrics.torch_metrics import CaseMeans, OfficialScores
from hnseg.models.checkpoint import CARD, FORMAT
from hnseg.models.losses import DeepSupervision

Batch = dict[str, Any]
# What the scores of the validation loaders are called: ROIs placed by the truth, and by coarse predictions.
ROIS = ("val", "val_coarse")


class SegmentationModule(L.LightningModule):
    """Trains one network on one stage.

    Args:
        network: Follows the contract of `hnseg.models.nets`.
        loss: Of the logits of all depths.
        predict: (network, image) → logits of a whole ROI, for validation.
        optimizer: Parameters → optimiser.
        scheduler: Optimiser → schedule, stepped once an epoch.
        classes: Foreground classes in the order of their labels.
        spacing: Voxel size of the stage's grid in mm, (x, y, z).
        card: Description of the network and its input, saved into every checkpoint.
        compile_network: Train with `torch.compile` on a GPU; on a CPU it gains nothing and is left out.
    """

    # nn.Module types its attributes as tensors or modules, no closer.
    loss: DeepSupervision
    means: dict[str, CaseMeans]
    official: OfficialScores | None

    def __init__(
        self,
        network: nn.Module,
        loss: DeepSupervision,
        predict: Callable[[nn.Module, Tensor], Tensor],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        *,
        classes: Sequence[str],
        spacing: tuple[float, float, float],
        card: Card,
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.predict = network, loss, predict
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.classes, self.spacing, self.card = tuple(classes), spacing, card
        self.compile_network = compile_network
        self.compiled: Callable[[Tensor], Any] | None = None
        names = ("loss", "dice", *(f"dice_{name}" for name in classes))
        self.means = nn.ModuleDict({where: CaseMeans(names) for where in ROIS})  # type: ignore[assignment]
        # The official scores are those of tumours and nodes; the localiser has neither.
        self.official = OfficialScores() if len(classes) == 2 else None

    def configure_model(self) -> None:
        """Channels-last is what the convolutions run fastest in."""
        self.network.to(memory_format=torch.channels_last_3d)

    def on_fit_start(self) -> None:
        """Compiles the training's pass alone, whose patches have one shape: ROIs of validation differ."""
        if self.compile_network and self.device.type == "cuda":
            self.compiled = torch.compile(self.network, dynamic=False)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss over all supervised depths of a batch of patches; logs its terms and depths too."""
        image = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        loss, parts = self.loss.parts((self.compiled or self.network)(image), batch["label"].long())
        # Means over the epoch, kept on the device: no step waits for a number to be read.
        means = {f"train/{name}": value for name, value in {"loss": loss.detach(), **parts}.items()}
        # The run's callbacks log them, before they save a checkpoint.
        self.log_dict(
            means, logger=False, on_step=False, on_epoch=True, batch_size=len(image), sync_dist=True
        )
        return loss

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> Tensor:
        """Scores whole ROIs, one at a time: Dice per class and their mean, over cases.

        ROIs placed by the truth are scored as `val/`, those placed by coarse predictions (the second
        loader) as `val_coarse/`; lesion voxels that an ROI does not hold count as missed.

        Returns:
            Labels (B, z, y, x), for callbacks that look at them.
        """
        logits = self.predict(self.network, batch["image"])
        target = batch["label"].long()
        decided = logits.argmax(1)
        where = ROIS[dataloader_idx]
        dice = {
            f"dice_{name}": _dice(
                decided == label, target == label, batch["voxels_outside_roi"][0, label - 1]
            )
            for label, name in enumerate(self.classes, start=1)
        }
        mean = torch.stack(list(dice.values())).mean()
        self.means[where].update({"loss": self.loss(logits, target), "dice": mean, **dice})
        if self.official is not None and where == "val":
            self.official.update(decided, target, self.spacing)
        return decided

    def on_validation_epoch_end(self) -> None:
        """Logs the means over cases, and the official scores inside the ROI."""
        for where in ROIS[: len(self.trainer.num_val_batches)]:
            means = self.means[where]
            self.log_dict({f"{where}/{name}": value for name, value in means.compute().items()})
            means.reset()
        if self.official is not None:
            self.log_dict({f"val/{name}": value for name, value in self.official.compute().items()})
            self.official.reset()

    def configure_optimizers(self) -> Any:
        """The injected optimiser, in one kernel for all weights where there is one, and schedule."""
        fused = {"fused": True} if self._fuses() else {}
        optimizer = self.make_optimizer(self.network.parameters(), **fused)
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def _fuses(self) -> bool:
        """Float16's scaler must see the gradients before a clipping, which fused kernels do not let it."""
        knows = "fused" in inspect.signature(self.make_optimizer).parameters
        return knows and self.device.type == "cuda" and self.trainer.precision != "16-mixed"

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm over all weights; Lightning's own way refuses fused optimisers, scaler or not."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint knows what it is, how its input was made, and what it scored."""
        metrics = self.trainer.callback_metrics
        scores = {name: float(value) for name, value in metrics.items() if name.startswith("val")}
        checkpoint[CARD] = {"format": FORMAT, **plain(self.card), "scores": scores}


def _dice(predicted: Tensor, truth: Tensor, outside: Tensor) -> Tensor:
    """Dice of one case and class; 1 where both are empty, as the official policy has it.

    `outside` is how many voxels of the truth the ROI does not hold.
    """
    total = predicted.sum() + truth.sum() + outside
    if total == 0:
        return torch.ones((), device=truth.device)
    return 2 * (predicted & truth).sum() / total
