"""curves.png: which values it draws, and that a run leaves it with train.log."""

from pathlib import Path

import numpy as np
import pytest
from entry import job, write_cohort
from matplotlib.axes import Axes
from matplotlib.image import imread

from hnseg.files import read_table
from hnseg.training.curves import save_curves

ROWS = [
    {"epoch": "0", "lr": "0.01", "train/loss": "1.5", "val/dice": "", "val/dice_GTVp": ""},
    {"epoch": "1", "lr": "0.005", "train/loss": "0.5", "val/dice": "0.25", "val/dice_GTVp": "0.5"},
    {"epoch": "2", "lr": "0.001", "train/loss": "0.25", "val/dice": "", "val/dice_GTVp": ""},
]


def test_each_value_is_drawn_at_the_epoch_in_which_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, plot = {}, Axes.plot

    def note(axes: Axes, x: np.ndarray, y: np.ndarray, **style: object) -> object:
        drawn[style["label"]] = (x.tolist(), y.tolist())
        return plot(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", note)
    save_curves(ROWS, tmp_path / "curves.png", "fine fold 0")
    assert drawn == {
        "train/loss": ([1, 2, 3], [1.5, 0.5, 0.25]),
        "val/dice_GTVp": ([2], [0.5]),
        "val/dice": ([2], [0.25]),
        "learning rate": ([1, 2, 3], [0.01, 0.005, 0.001]),
    }
    assert imread(tmp_path / "curves.png").shape == (1000, 900, 4)


def test_a_row_has_the_learning_rate_of_its_epoch(tmp_path: Path) -> None:
    job(write_cohort(tmp_path / "data"), tmp_path / "runs", "training.epochs=2", "optimizer.step.lr=0.02")
    (metrics,) = tmp_path.rglob("metrics.csv")
    _, rows = read_table(metrics, "")
    half = 0.02 * 0.5**0.9  # nnU-Net's polynomial schedule, half way
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.02, half])
    assert all(float(row["epoch/seconds"]) > 0 for row in rows)
    assert (metrics.parent / "curves.png").exists()
    assert len((metrics.parent / "train.log").read_text().splitlines()) == 3
