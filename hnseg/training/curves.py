"""curves.png: loss, Dice, learning rate and seconds an epoch of a run, drawn from its metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hnseg.files import read_table, replacing
from hnseg.training.runs import RunFolder

MOMENTUM = 0.9  # of the moving average of the Dice, as nnU-Net's progress.png has it
FEW = 30  # validations


class Curves(L.Callback):
    """Draws the run's curves.png after each epoch, once metrics.csv has the epoch's row."""

    def __init__(self, folder: RunFolder, title: str) -> None:
        self.folder, self.title = folder, title

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw()

    def draw(self) -> None:
        """Replaces the picture, where an epoch has ended."""
        _, rows = read_table(self.folder.metrics, "move it away")
        if rows:
            save_curves(rows, self.folder.path / "curves.png", self.title)


def save_curves(rows: Sequence[Mapping[str, str]], path: Path, title: str) -> None:
    """Draws the rows of a metrics.csv.

    Args:
        rows: One an epoch, as text; a cell is empty where nothing was measured.
        path: The PNG file.
        title: Names the run.
    """
    columns = {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0]}
    epochs = columns["epoch"] + 1
    figure = Figure(figsize=(9, 10), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=[3, 3, 1, 1])
    loss, dice, rate, pace = panels
    for name in ("train/loss", "train/dice_loss", "train/ce_loss", "val/loss"):
        _line(loss, epochs, columns.get(name), name)
    classes = (name for name in columns if name.startswith(("val/dice_", "val_coarse/dice_")))
    for name in sorted(classes, key=lambda name: (name.partition("/")[0], name.endswith("GTVn"))):
        _line(dice, epochs, columns[name], name, alpha=0.5)
    chosen = next((name for name in ("val_coarse/dice", "val/dice") if name in columns), None)
    if chosen is not None and np.isfinite(columns[chosen]).any():
        measured = np.isfinite(columns[chosen])
        few = measured.sum() <= FEW  # an average would lag behind
        mean, label = columns[chosen][measured], chosen if few else f"{chosen}, averaged"
        _line(dice, epochs[measured], mean if few else _average(mean), label, color="black", linewidth=2)
        best = int(np.nanargmax(columns[chosen]))
        score = columns[chosen][best]
        dice.axvline(
            epochs[best], color="grey", linestyle=":", label=f"best: epoch {epochs[best]:g}: {score:.3f}"
        )
    _line(rate, epochs, columns.get("lr"), "learning rate")
    _line(pace, epochs, columns.get("epoch/seconds"), "seconds an epoch")
    for axes, label in zip(panels, ("loss", "Dice", "learning\nrate", "seconds\nan epoch"), strict=True):
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    for axes in (loss, dice):
        if axes.has_data():
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    dice.set_ylim(-0.02, 1.02)
    for axes in (rate, pace):
        axes.set_ylim(bottom=0)
    pace.set_xlabel("epoch")
    pace.set_xlim(0.5, epochs[-1] + 0.5)
    pace.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.align_ylabels(panels)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _line(
    axes: Axes, epochs: NDArray[np.float64], values: NDArray[np.float64] | None, label: str, **style: Any
) -> None:
    """A curve through the epochs in which it was measured; points as long as they are few."""
    if values is not None and (measured := np.isfinite(values)).any():
        marker = "o" if measured.sum() <= FEW else ""
        axes.plot(epochs[measured], values[measured], marker=marker, markersize=3, label=label, **style)


def _average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    averaged = values.copy()
    for n in range(1, len(values)):
        averaged[n] = MOMENTUM * averaged[n - 1] + (1 - MOMENTUM) * values[n]
    return averaged
