"""Pictures of validation cases, from trainings of two steps an epoch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_files import offline_runs

from hnseg.config import Job
from hnseg.training.loggers import loggers
from hnseg.training.pictures import Pictures


class Still(L.LightningModule):
    """Finds a class at the first validation, and nothing afterwards."""

    spacing = (1.0, 1.0, 2.0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        return self.weight.square()

    def validation_step(self, batch: dict[str, Any], index: int, dataloader_idx: int = 0) -> torch.Tensor:
        return batch["label"] if self.current_epoch == 0 else torch.zeros_like(batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def cases(count: int) -> list[dict[str, Any]]:
    """Batches of one, CT and PET of noise with a tumour in slices 5 and 6."""
    label = torch.zeros(1, 8, 16, 16, dtype=torch.long)
    label[:, 5:7, 4:9, 6:12] = 1
    rng = torch.Generator().manual_seed(0)
    images = (torch.randn(1, 2, 8, 16, 16, generator=rng) for _ in range(count))
    return [{"image": image, "label": label, "case_id": [f"A-{n}"]} for n, image in enumerate(images)]


@pytest.fixture
def validation() -> list[Any]:
    """The same cases placed by the ground truth and by coarse predictions."""
    return [torch.utils.data.DataLoader(cases(7), batch_size=None) for _ in range(2)]


@pytest.fixture
def train(job: Callable[..., Job], begin: Any, make_trainer: Any, validation: list[Any]) -> Any:
    """Two steps an epoch."""

    def train(
        folder: Path, epochs: int, every: int = 1, channels: Sequence[str] = ("CT", "PET"), kind: str = "csv"
    ) -> None:
        with loggers(begin(folder), job(kind=kind), {}) as several:
            trainer = make_trainer(epochs, Pictures(folder, channels, every), logger=several)
            trainer.fit(Still(), torch.utils.data.DataLoader(cases(2), batch_size=None), validation)

    return train


def test_the_same_few_cases_are_painted_every_few_epochs(tmp_path, train):
    train(tmp_path, 5, every=2, kind="wandb")
    painted = sorted(path.relative_to(tmp_path / "pictures") for path in tmp_path.glob("pictures/*/*"))
    # Seven cases, of which three are spread over them; two steps an epoch, so epochs 2 and 4 end at 3 and 7.
    expected = [Path(f"A-{n}/step_{step:07d}.png") for n in (0, 3, 6) for step in (3, 7)]
    assert painted == expected
    (found,) = offline_runs(tmp_path)
    shown = {row["_step"]: row for row in found.history if any("pictures" in key for key in row)}
    assert sorted(shown) == [3, 7]
    assert all(f"pictures/A-{n}" in str(shown[3]) for n in (0, 3, 6))


def test_contours_follow_the_prediction(tmp_path, train):
    train(tmp_path, 2)
    found, missed = (imread(tmp_path / "pictures" / "A-0" / f"step_{step:07d}.png") for step in (1, 3))
    assert found.shape == missed.shape
    assert found.shape[1] > 1.5 * found.shape[0]  # CT beside CT with PET
    assert _blue(found) > _blue(missed) > 0  # ground truth and prediction, ground truth alone


def test_tensorboard_shows_them_too(tmp_path, train):
    train(tmp_path, 2, every=2, kind="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("pictures/A-3")] == [3]


def _blue(picture: np.ndarray) -> int:
    """Pixels in the tumour's colours."""
    red, blue = picture[..., 0], picture[..., 2]
    return int((blue - red > 0.3).sum())
