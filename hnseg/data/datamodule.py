"""Cases of one fold → loaders of training patches and validation ROIs."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader

from hnseg.card import InputSpec, Stage
from hnseg.data.augment import Compose
from hnseg.data.cache import StageVolume
from hnseg.data.dataset import WHOLE, EpochSampler, PatchDataset, Shape, Shard, VolumeDataset, augment_batch
from hnseg.data.fingerprint import Fingerprint, needs_fingerprint
from hnseg.data.prepare import digest_volumes, prepare
from hnseg.imaging.case import Case

PREFETCH = 2  # batches that each loader process has ready
_MOST_WORKERS = 12  # nnU-Net's own number for one GPU
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Loading:
    """Loader processes of a training (0: it loads by itself), and whether batches lie in pinned memory."""

    workers: int
    pin: bool

    def __str__(self) -> str:
        return f"batches from {self.workers or 'no'} loader process{'' if self.workers == 1 else 'es'}"


IN_PROCESS = Loading(0, pin=False)


def choose_loading(
    workers: int | Literal["auto"], *, gpus: int, batch_bytes: int, processes: int = 1
) -> Loading:
    """How to load for one training.

    Without a GPU the network takes all cores. Each GPU gets its share of the cores but one, at most as many
    as nnU-Net takes. Batches take at most half of the shared memory, of which a container often has little.

    Args:
        workers: Processes, or `auto`.
        gpus: GPUs of this machine, each with a training of its own; 0 trains on the processor.
        batch_bytes: Size of one batch.
        processes: Training processes on this machine.
    """
    if workers != "auto":
        return Loading(workers, pin=gpus > 0)
    if not gpus:
        return IN_PROCESS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores // gpus - 1, _MOST_WORKERS)
    if _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free
        count = min(count, free // 2 // (PREFETCH * batch_bytes * processes))
    return Loading(max(count, 0), pin=True)


class StageDataModule(L.LightningDataModule):
    """One stage's patches and validation ROIs for one fold.

    Fine ROIs can be placed by the true lesions or, as at inference, by coarse predictions. Where there
    are predictions, both are validated: the first loader has the true ROIs, the second the predicted ones.

    Batches are dictionaries: `image` (B, C, z, y, x) float, `label` (B, z, y, x) uint8, `case_id` list;
    in validation also `voxels_outside_roi` (B, classes), ground-truth voxels that the ROI does not hold.

    Args:
        train: Training cases.
        validation: Cases of the held-out fold.
        stage: The stage.
        spec: The input chain, the same at inference.
        patch: Training patch, (z, y, x).
        batch_size: Patches a batch.
        cache: Folder of prepared volumes.
        accumulate: Equal parts in which a batch is loaded, one after another.
        shard: The part of each of these, and of the validation cases, that this process takes.
        samples: Patches an epoch; None is one pass over the training cases.
        heads: Folder of head masks, where the stage needs them.
        coarse: Folder of out-of-fold coarse predictions, or None.
        train_roi: What places the ROI in training: `ground_truth` or `coarse`.
        augment: Transforms of patches.
        scan_augment: Transforms of scans, before the input chain.
        jitter_mm: Random shift of the ROI in training, at most this much along each axis, mm.
        loading: Loader processes.
        prepare_workers: Processes that prepare; all cores by default.
        seed: Of cases, positions and augmentation.
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
        shard: Shard = WHOLE,
        samples: int | None = None,
        heads: Path | None = None,
        coarse: Path | None = None,
        train_roi: str = "ground_truth",
        augment: Compose | None = None,
        scan_augment: Compose | None = None,
        jitter_mm: float = 0.0,
        loading: Loading = IN_PROCESS,
        prepare_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.stage, self.spec, self.patch, self.batch_size = stage, spec, patch, batch_size
        self.cache, self.samples, self.heads, self.augment = cache, samples, heads, augment
        self.accumulate, self.shard = accumulate, shard
        self.coarse, self.train_roi, self.scan_augment = coarse, train_roi, scan_augment
        self.jitter_mm, self.loading, self.prepare_workers = jitter_mm, loading, prepare_workers
        self.seed = seed

    def prepare_data(self) -> None:
        """Fills the cache, all cases of a kind of ROI at once; what has not changed is reused.

        Called on one process only.
        """
        for coarse in self._rois:
            cases = [*self.validation, *(self.train if coarse == self._train_roi else ())]
            self._prepare(list({case.case_id: case for case in cases}.values()), coarse)

    def fingerprint(self) -> Fingerprint | None:
        """Measures the constants that the input chain lacks on the training fold, and fills them in."""
        if not needs_fingerprint(self.spec):
            return None
        fingerprint = Fingerprint.measure(self._train_volumes(), self.spec, self.cache)
        self.spec = fingerprint.fill(self.spec)
        return fingerprint

    def training_scans(self) -> tuple[str, ...]:
        """`digest_voxels` of the CT of each training case."""
        return tuple(volume.meta["ct_digest"] for volume in self._train_volumes())

    def digest(self) -> str:
        """Digest of the prepared volumes that are trained and validated on."""
        return digest_volumes(chain(self._train_volumes(), *self._validation_volumes()))

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
        rank, size = self.shard
        self.validation_sets = [
            VolumeDataset(volumes[rank::size], self.spec, len(self.stage.classes))
            for volumes in self._validation_volumes()
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        """Patches in numbered order; see `PatchDataset`."""
        # Whole batches only: a sample's place in its batch decides whether it is forced onto foreground.
        batches = math.ceil((self.samples or len(self.train_set.volumes)) / self.batch_size)
        part = self.batch_size // self.accumulate
        return DataLoader(
            self.train_set,
            batch_size=part // self.shard.size,
            sampler=EpochSampler(batches * self.batch_size, part, self.shard),
            collate_fn=list if self.train_set.augments_on_device else None,
            **self._processes(self.loading.workers),
        )

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Whole ROIs, one at a time: the true ones, then the predicted ones where there are any."""
        # Whole ROIs are large and need no augmentation: few processes keep up.
        processes = self._processes(min(self.loading.workers, 2))
        return [DataLoader(cases, batch_size=1, **processes) for cases in self.validation_sets]

    def _processes(self, workers: int) -> dict[str, Any]:
        ahead = {"prefetch_factor": PREFETCH, "persistent_workers": True} if workers else {}
        return {"num_workers": workers, "pin_memory": self.loading.pin, **ahead}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments on the device where the loaders left it to it."""
        if isinstance(batch, list) and self.augment is not None:
            return augment_batch(self.augment, batch)
        return batch

    def _validation_volumes(self) -> list[list[StageVolume]]:
        return [self._prepare(self.validation, coarse) for coarse in self._rois]

    def _train_volumes(self) -> list[StageVolume]:
        return self._prepare(self.train, self._train_roi)

    @property
    def _rois(self) -> list[Path | None]:
        """What places the validation's: the ground truth, then the coarse predictions where there are any."""
        return [None] if self.coarse is None else [None, self.coarse]

    @property
    def _train_roi(self) -> Path | None:
        return self.coarse if self.train_roi == "coarse" else None

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
