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
from hnseg.data.augmented import augment_batch
from hnseg.data.cache import StageVolume
from hnseg.data.content import digest_volumes
from hnseg.data.dataset import WHOLE, EpochSampler, PatchDataset, Shape, Share, VolumeDataset
from hnseg.data.fingerprint import Fingerprint, needs_fingerprint
from hnseg.data.intensity import InputSpec
from hnseg.data.loading import AHEAD, IN_PROCESS, Loading
from hnseg.data.prepare import prepare
from hnseg.stage import Stage


class StageDataModule(L.LightningDataModule):
    """One stage's patches and validation ROIs for one fold.

    Fine ROIs can be placed by the true lesions or, as at inference, by coarse predictions. Where there
    are predictions, both are validated: the first loader has the true ROIs, the second the predicted ones.

    Batches are dictionaries: `image` (B, C, z, y, x) float, `label` (B, z, y, x) long, `case_id` list;
    in validation also `missed` (B, classes), voxels of the truth that the ROI does not hold.

    Args:
        train: Training cases.
        validation: Cases of the held-out fold.
        stage: The stage.
        spec: The input chain, the same at inference.
        patch: Training patch, (z, y, x).
        batch_size: Patches a batch.
        accumulate: Equal parts in which a batch is loaded, one after another.
        share: Of each of these parts, and of the validation cases, where several processes train.
        samples: Patches an epoch; None is one pass over the training cases.
        cache: Folder of prepared volumes.
        heads: Folder of head masks, where the stage needs them.
        coarse: Folder of coarse predictions of models that have not seen the case, or None.
        train_roi: What places the ROI in training: `truth` or `coarse`.
        augment: Transform of subjects with `image` and `label`.
        scan_augment: Transform of subjects with the stage's modalities and `label`, before the chain.
        jitter_mm: Random shift of the ROI in training, at most this much along each axis, mm.
        loading: Loader processes.
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
        accumulate: int = 1,
        share: Share = WHOLE,
        samples: int | None = None,
        heads: Path | None = None,
        coarse: Path | None = None,
        train_roi: str = "truth",
        augment: tio.Transform | None = None,
        scan_augment: tio.Transform | None = None,
        jitter_mm: float = 0.0,
        loading: Loading = IN_PROCESS,
        prepare_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.cases = {"train": list(train), "validation": list(validation)}
        self.stage, self.spec, self.patch, self.batch_size = stage, spec, patch, batch_size
        self.cache, self.samples, self.heads, self.augment = cache, samples, heads, augment
        self.accumulate, self.share = accumulate, share
        self.coarse, self.train_roi, self.scan_augment = coarse, train_roi, scan_augment
        self.jitter_mm, self.loading, self.prepare_workers = jitter_mm, loading, prepare_workers
        self.seed = seed

    def prepare_data(self) -> None:
        """Fills the cache; what has not changed is reused. Called on one process only."""
        trained = {case.case_id for case in self.cases["train"]}
        new = [case for case in self.cases["validation"] if case.case_id not in trained]
        training_roi = self.coarse if self.train_roi == "coarse" else None
        for coarse in self._validation_rois():
            both = coarse == training_roi  # in one go, so that all cores are busy to the end
            self._prepare([*self.cases["train"], *new] if both else self.cases["validation"], coarse)

    def fingerprint(self) -> Fingerprint | None:
        """Measures what the input chain needs to know of the training fold, and tells the chain; None if
        it needs nothing."""
        if not needs_fingerprint(self.spec):
            return None
        fingerprint = Fingerprint.measure(self._train_volumes(), self.spec, self.cache)
        self.spec = fingerprint.fill(self.spec)
        return fingerprint

    def digest(self) -> str:
        """Of the prepared volumes that are trained and validated on."""
        self.prepare_data()
        rois = self._validation_rois()
        validation = [volume for coarse in rois for volume in self._prepare(self.cases["validation"], coarse)]
        return digest_volumes([*self._train_volumes(), *validation])

    def setup(self, stage: str) -> None:
        """Builds the data sets from the cache."""
        self.train_set = PatchDataset(
            self._train_volumes(),
            self.spec,
            self.patch,
            self.batch_size,
            self.augment,
            self.seed,
            jitter=self.jitter_mm > 0,
            scan_augment=self.scan_augment,
        )
        rank, size = self.share
        volumes = [self._prepare(self.cases["validation"], coarse) for coarse in self._validation_rois()]
        classes = len(self.stage.classes)
        self.validation_sets = [VolumeDataset(one[rank::size], self.spec, classes) for one in volumes]

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Patches in numbered order; see `PatchDataset`."""
        # Whole batches only: a sample's place in its batch decides whether it is forced onto foreground.
        batches = math.ceil((self.samples or len(self.train_set.volumes)) / self.batch_size)
        part = self.batch_size // self.accumulate
        return DataLoader(
            self.train_set,
            batch_size=part // self.share.size,
            sampler=EpochSampler(batches * self.batch_size, part, self.share),
            collate_fn=list if self.train_set.postpones else None,
            **self._processes(self.loading.workers),
        )

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Whole ROIs, one at a time: the true ones, then the predicted ones where there are any."""
        # Whole ROIs are large and need no augmentation: few processes keep up.
        processes = self._processes(min(self.loading.workers, 2))
        return [DataLoader(one, batch_size=1, **processes) for one in self.validation_sets]

    def _processes(self, workers: int) -> dict[str, Any]:
        """What a loader is told of its processes."""
        ahead = {"prefetch_factor": AHEAD, "persistent_workers": True} if workers else {}
        return {"num_workers": workers, "pin_memory": self.loading.pin, **ahead}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments what the loaders left to the device."""
        return augment_batch(self.train_set.augment, batch) if isinstance(batch, list) else batch

    def _validation_rois(self) -> list[Path | None]:
        return [None] if self.coarse is None else [None, self.coarse]

    def _train_volumes(self) -> list[StageVolume]:
        return self._prepare(self.cases["train"], self.coarse if self.train_roi == "coarse" else None)

    def _prepare(self, cases: Sequence[Case], coarse: Path | None) -> list[StageVolume]:
        return prepare(
            cases,
            self.stage,
            self.cache,
            sampling=self.spec.sampling,
            modalities=self.spec.modalities,
            heads=self.heads,
            coarse=coarse,
            margin_mm=self.jitter_mm,
            workers=self.prepare_workers,
        )
