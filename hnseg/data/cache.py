"""Entries of the cache: one case on one stage's grid, whole or absent, with a hash of what made it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnseg.cases import Case, mask_file
from hnseg.suv import sidecar

ARRAYS = ("ct", "pet", "label")


@dataclass(frozen=True)
class StageVolume:
    """One case on one stage's grid, as it lies in the cache.

    Args:
        case_id: The case.
        folder: Holds ct.npy, pet.npy (where the stage's networks see it), label.npy (z, y, x) and meta.json.
    """

    case_id: str
    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What made the entry: key, grid (with margin), margin in voxels (x, y, z), ml outside the ROI."""
        return json.loads((self.folder / "meta.json").read_text())

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels around the ROI, (z, y, x)."""
        x, y, z = self.meta["margin"]
        return z, y, x

    def missed(self, classes: int) -> list[float]:
        """Voxels of each class 1..classes that the ROI does not hold, in voxels of the stage's grid."""
        voxel_ml = float(np.prod(self.meta["grid"]["spacing"])) / 1000
        outside = self.meta["ml_outside_roi"]
        return [outside.get(str(label), 0.0) / voxel_ml for label in range(1, classes + 1)]

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """What it holds of `ct`, `pet` and `label`."""
        return tuple(name for name in ARRAYS if self._file(name).exists())

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def load(self, name: str) -> NDArray[Any]:
        """One of its `arrays` as a memory map (z, y, x), margin included."""
        return np.load(self._file(name), mmap_mode="r")


def write_entry(arrays: dict[str, NDArray[Any]], meta: dict[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "meta.json").write_text(json.dumps(meta))
        _put_in_place(temporary, target, meta["key"])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path, key: str) -> None:
    """Folds may prepare one case at the same time: an entry is whole or absent, and the first one stays."""
    if key_of(target) == key:
        return
    outdated = temporary.with_name(f"{temporary.name}.old")
    with suppress(FileNotFoundError):
        target.replace(outdated)
    try:
        temporary.replace(target)
    except OSError:
        if key_of(target) != key:
            raise
    shutil.rmtree(outdated, ignore_errors=True)


def key_of(entry: Path) -> str | None:
    """Hash of what an entry was made from; None if there is no entry."""
    try:
        return json.loads((entry / "meta.json").read_text())["key"]
    except FileNotFoundError:
        return None


def sources(case: Case, masks: Path | None) -> str:
    """Hash of what an entry is made from: the files' names, sizes and times of change, the PET's factor."""
    paths = [case.ct, case.pet, case.label, None if masks is None else mask_file(masks, case.case_id)]
    paths.append(sidecar(case.pet))
    states: list[Any] = [] if case.pet_factor is None else [case.pet_factor]
    for path in paths:
        if path is not None and path.exists():
            stat = path.stat()
            states.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return digest(states)


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
