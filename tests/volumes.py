"""Entries of the cache written by hand, so that data sets can be tried without preparing anything."""

import json
from pathlib import Path

import numpy as np

from hnseg.data.cache import StageVolume


def write_volume(
    folder: Path, name: str, label: np.ndarray, margin: tuple[int, int, int] = (0, 0, 0), seed: int = 0
) -> StageVolume:
    """An entry whose CT and PET show the label: muscle and lesions in air, PET with noise.

    Args:
        folder: of the cache.
        name: the case.
        label: (z, y, x), margin included.
        margin: voxels around the ROI, (z, y, x).
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    entry = folder / name
    entry.mkdir(parents=True)
    np.save(entry / "ct.npy", (rng.normal(0, 30, label.shape) + 40 * (label > 0)).astype(np.int16))
    np.save(entry / "pet.npy", (rng.gamma(1, 1, label.shape) + 4.0 * label).astype(np.float32))
    np.save(entry / "label.npy", label.astype(np.uint8))
    grid = {"size": list(label.shape[::-1]), "spacing": [1, 1, 1], "origin": [0, 0, 0]}
    meta = {"margin": list(margin[::-1]), "grid": grid, "ml_outside_roi": {}}
    (entry / "meta.json").write_text(json.dumps(meta))
    return StageVolume(name, entry)


def numbered(folder: Path, shape: tuple[int, int, int], margin: tuple[int, int, int]) -> StageVolume:
    """An entry whose PET holds each voxel's own number, so that a patch shows where it was cut."""
    volume = write_volume(folder, "numbered", np.zeros(shape, np.uint8), margin)
    np.save(volume.folder / "pet.npy", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    return volume


def lesions(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Few voxels of both classes (z, y, x): GTVp rarer than GTVn."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value, count in ((1, 2), (2, 8)):
        z, y, x = (rng.integers(0, n, count) for n in shape)
        label[z, y, x] = value
    return label
