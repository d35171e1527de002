"""Cases + split + stage → loaders for one fold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torchio as tio
from torch.utils.data import DataLoader

from hnseg.cases import Case
from hnseg.data.dataset import EpochSampler, PatchDataset, Shape, VolumeDataset
from hnseg.data.intensity import InputSpec
from hnseg.data.prepare import StageVolume, prepare
from hnseg.stage import Stage


class StageDataModule(L.LightningDataModule):
    """One stage's patches and validation ROIs for one fold.

    Batches are dictionaries: `image` (B, C, z, y, x) float, `label` (B, z, y, x) long, `case_id` list.

    Args:
        train: Training cases.
        validation: Cases of the held-out fold.
        stage: The stage.
        spec: The input chain, the same at inference.
        patch: Training patch, (z, y, x).
        batch_size: Patches a batch.
        samples: Patches an epoch; None is one pass over the training cases.
        cache: Folder of prepared volumes.
        heads: Folder of head masks, where the stage needs them.
        augment: Transform of subjects with `image` and `label`.
        jitter_mm: Random shift of the ROI in training, at most this much along each axis, mm.
        workers: Loader processes; 0 loads in the training process.
        prepare_workers: Processes that prepare; all cores by default.
        seed: Of everything random.
    """

    def __init__(
        self,
        train: Sequence[Case],
        validation: Sequence[Case],
        *,
        stage: Stage,
        spec: InputSpec,
        patch: Shape,
        batch_size: int,
        cache: Path,
        samples: int | None = None,
        heads: Path | None = None,
        augment: tio.Transform | None = None,
        jitter_mm: float = 0.0,
        workers: int = 0,
        prepare_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.cases = {"train": list(train), "validation": list(validation)}
        self.stage, self.spec, self.patch, self.batch_size = stage, spec, patch, batch_size
        self.cache, self.samples, self.heads, self.augment = cache, samples, heads, augment
        self.jitter_mm, self.workers, self.prepare_workers, self.seed = (
            jitter_mm,
            workers,
            prepare_workers,
            seed,
        )

    def prepare_data(self) -> None:
        """Fills the cache; what has not changed is reused. Called on one process only."""
        self._prepare([*self.cases["train"], *self.cases["validation"]])

    def setup(self, stage: str) -> None:
        """Builds both data sets from the cache."""
        self.train_set = PatchDataset(
            self._prepare(self.cases["train"]),
            self.spec,
            self.patch,
            self.batch_size,
            self.augment,
            self.seed,
            jitter=self.jitter_mm > 0,
        )
        self.validation_set = VolumeDataset(self._prepare(self.cases["validation"]), self.spec)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Patches in numbered order; see `PatchDataset`."""
        # Whole batches only: a sample's place in its batch decides whether it is forced onto foreground.
        batches = math.ceil((self.samples or len(self.train_set.volumes)) / self.batch_size)
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            sampler=EpochSampler(batches * self.batch_size),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Whole ROIs, one at a time."""
        return DataLoader(self.validation_set, batch_size=1)

    def _prepare(self, cases: Sequence[Case]) -> list[StageVolume]:
        unique = list({case.case_id: case for case in cases}.values())
        return prepare(
            unique,
            self.stage,
            self.cache,
            heads=self.heads,
            margin_mm=self.jitter_mm,
            workers=self.prepare_workers,
        )
