"""The same validation cases painted every few epochs, to see what a network learns and where it errs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from torch import Tensor

from hnseg.files import replacing
from hnseg.imaging.slices import CT_WINDOW, PET_WINDOW, Kind, View, draw_slice, planes

CASES = 3


def picture_path(folder: Path, case_id: str, step: int) -> Path:
    """Of a case's picture at a step."""
    return folder / "pictures" / case_id / f"step_{step:07d}.png"


def pictures(folder: Path) -> list[tuple[int, str, Path]]:
    """All pictures of a run in the order they were painted, as (step, case, path)."""
    found = (folder / "pictures").glob("*/step_*.png")
    return sorted((int(path.stem.removeprefix("step_")), path.parent.name, path) for path in found)


def discard_pictures(folder: Path, step: int) -> None:
    """Removes the pictures from a step on, which a run resumed there paints again."""
    for painted, _, path in pictures(folder):
        if painted >= step:
            path.unlink()


class Pictures(L.Callback):
    """Paints a few validation cases in ROIs placed by the ground truth, and shows them to the loggers.

    Each is an axial slice, the one with most of the ground truth, of CT and of CT with PET, as the network is
    shown them; contours are solid for the ground truth and dashed for the prediction.

    Args:
        folder: The run's folder.
        channels: Names of the network's input channels, CT among them and PET where there is one.
        every: Epochs between paintings; the first validation at or after that many counts.
    """

    def __init__(self, folder: Path, channels: Sequence[str], every: int) -> None:
        self.folder, self.every = folder, every
        self.ct = channels.index("CT")
        self.pet = channels.index("PET") if "PET" in channels else None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Paints a few cases, spread over the list, once `every` epochs have passed."""
        epochs, interval = trainer.current_epoch + 1, trainer.check_val_every_n_epoch or 1
        apart = max(1, -(-int(trainer.num_val_batches[0]) // CASES))
        if dataloader_idx or batch_idx % apart or epochs % self.every >= interval:
            return
        case_id, step = batch["case_id"][0], max(trainer.global_step - 1, 0)
        path, key = picture_path(self.folder, case_id, step), f"pictures/{case_id}"
        figure = self._paint(batch["image"][0], batch["label"][0], outputs[0], pl_module.spacing)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", facecolor="black")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key, [str(path)], step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(key, imread(path, format="png")[..., :3], step, dataformats="HWC")

    def _paint(self, image: Tensor, truth: Tensor, predicted: Tensor, spacing: Any) -> Figure:
        """One ROI (C, z, y, x) through the slice with most of the ground truth, else through its middle."""
        labels = truth.cpu().numpy().astype(np.uint8)
        areas = (labels > 0).sum(axis=(1, 2))
        z = int(areas.argmax()) if areas.any() else len(areas) // 2
        ct = image[self.ct].float().cpu().numpy()
        pet = np.zeros_like(ct) if self.pet is None else image[self.pet].float().cpu().numpy()
        view = View(
            ct=_scaled(ct, *CT_WINDOW),
            pet=_scaled(pet, *PET_WINDOW),
            truth=labels,
            prediction=predicted.cpu().numpy().astype(np.uint8),
            spacing=spacing,
            focus=(labels.shape[2] // 2, labels.shape[1] // 2, z),
            focus_mm=(0.0, 0.0, z * spacing[2]),
        )
        axial = next(planes(view))
        kinds: tuple[Kind, ...] = ("ct",) if self.pet is None else ("ct", "fused")
        height = 4 * ct.shape[1] * spacing[1] / (ct.shape[2] * spacing[0])
        figure = Figure(figsize=(4 * len(kinds), height), facecolor="black", layout="constrained")
        FigureCanvasAgg(figure)
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            draw_slice(axes, view, axial, kind)
        return figure


def _scaled(channel: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """A channel, in whatever units the network is shown it, from its least to its highest values."""
    bottom, top = np.percentile(channel, (0.1, 99.9))
    unit = np.clip((channel - bottom) / max(float(top - bottom), 1e-6), 0, 1)
    return (low + unit * (high - low)).astype(np.float32)
