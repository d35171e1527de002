"""Entries of the cache: a case on a stage's grid, under a hash of its sources."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnseg.errors import HnsegError
from hnseg.files import digest, lock, replacing_folder
from hnseg.imaging.case import Case, mask_file
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.suv import sidecar

ARRAYS = ("ct", "pet", "label")
_STAGE = re.compile(
    r"(localiser|coarse|fine)-[0-9a-f]{12}"
)  # folders of entries, as `stage_folder` names them


class CacheError(HnsegError):
    """The cache cannot be written, whichever the case."""


@dataclass(frozen=True)
class StageVolume:
    """A case on a stage's grid: a folder of ct.npy, perhaps pet.npy, label.npy (z, y, x) and meta.json."""

    case_id: str
    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Of the entry: files' sizes, grid (with margin), margin in voxels (x, y, z), ml outside the ROI."""
        return json.loads((self.folder / "meta.json").read_text())

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    @property
    def margin(self) -> tuple[int, int, int]:
        """Voxels around the ROI, (z, y, x)."""
        x, y, z = self.meta["margin"]
        return z, y, x

    def voxels_outside_roi(self, classes: int) -> list[float]:
        """Voxels of each class 1..classes that the ROI does not hold, in voxels of the stage's grid."""
        ml, outside = voxel_ml(self.meta["grid"]["spacing"]), self.meta["ml_outside_roi"]
        return [outside.get(str(label), 0.0) / ml for label in range(1, classes + 1)]

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        return tuple(name for name in ARRAYS if (self.folder / f"{name}.npy").exists())

    def load(self, name: str) -> NDArray[Any]:
        """One of the `arrays` as a memory map (z, y, x), margin included."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")


def entry_folder(folder: Path, case: Case, masks: Path | None) -> Path:
    """Where a case's entry lies: a changed source makes another entry, and trainings keep theirs.

    It is named by a hash of the files' names, sizes and times of change, and the PET's factor.
    """
    mask = None if masks is None else mask_file(masks, case.case_id)
    paths = [case.ct, case.pet, case.label, mask, sidecar(case.pet)]
    return folder / case.case_id / digest([case.pet_factor, *map(_state, paths)])


def find_entries(cache: Path) -> list[StageVolume]:
    """All entries of a cache, with what killed processes left of some."""
    folders = [path for path in sorted(cache.glob("*/*/*")) if _STAGE.fullmatch(path.parents[1].name)]
    return [StageVolume(path.parent.name, path) for path in folders if path.is_dir()]


def remove_entries(volumes: Sequence[StageVolume]) -> None:
    """Removes entries, and the folders that are empty then.

    Raises:
        CacheError: One cannot be removed.
    """
    for volume in volumes:
        case = volume.folder.parent
        try:
            with lock(case, wait=True):
                shutil.rmtree(volume.folder)
        except OSError as error:
            raise CacheError(f"{volume.folder}: cannot be removed ({error.strerror}); allow it") from error
        with suppress(OSError):
            case.rmdir()
            case.parent.rmdir()


def write_entry(arrays: dict[str, NDArray[Any]], meta: dict[str, Any], target: Path) -> None:
    """Writes an entry, whole or not at all; a whole one stays, since a training may be reading it.

    Raises:
        CacheError: The cache cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target.parent, wait=True):
            if is_whole(target):
                return
            with replacing_folder(target) as new:
                for name, array in arrays.items():
                    np.save(new / f"{name}.npy", array)
                sizes = {file.name: file.stat().st_size for file in new.iterdir()}
                (new / "meta.json").write_text(json.dumps(meta | {"sizes": sizes}))
    except OSError as error:
        reason = error.strerror or error  # NumPy reports a full disk without an error number
        raise CacheError(
            f"{target}: cannot be written ({reason}); check the folder and its space, or choose another "
            "data.cache=FOLDER"
        ) from error


def is_whole(entry: Path) -> bool:
    """Whether an entry exists, each file as long as it was written."""
    try:
        sizes = json.loads((entry / "meta.json").read_text())["sizes"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _state(path: Path | None) -> list[Any] | None:
    if path is None or not path.exists():
        return None
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
