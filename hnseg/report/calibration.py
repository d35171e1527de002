"""How far a probability map can be taken at its word."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hnseg.errors import HnsegError
from hnseg.images import EXTENSIONS, read_image, read_label, same_grid, to_array

BINS = 10
# Less is background that nobody doubts, and most of a scan: with it every map would look calibrated.
LEAST = 0.01


def _zeros() -> NDArray[np.float64]:
    return np.zeros(BINS)


@dataclass
class Calibration:
    """Counts over bins of equal width, summed over cases.

    Attributes:
        voxels: (BINS,) voxels of a probability of `LEAST` or more.
        probability: (BINS,) their sum of probabilities.
        true: (BINS,) how many are of the class.
    """

    voxels: NDArray[np.float64] = field(default_factory=_zeros)
    probability: NDArray[np.float64] = field(default_factory=_zeros)
    true: NDArray[np.float64] = field(default_factory=_zeros)

    def add(self, probability: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Count a case, both (z, y, x) on one grid."""
        counted = probability >= LEAST
        values = probability[counted].astype(np.float64)
        bins = np.minimum((values * BINS).astype(int), BINS - 1)
        self.voxels += np.bincount(bins, minlength=BINS)
        self.probability += np.bincount(bins, values, minlength=BINS)
        self.true += np.bincount(bins, truth[counted], minlength=BINS)

    @property
    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean probability and share of true voxels of the bins that hold any."""
        held = self.voxels > 0
        return self.probability[held] / self.voxels[held], self.true[held] / self.voxels[held]

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean distance of both, bins weighted by voxels."""
        total = self.voxels.sum()
        return float(np.abs(self.probability - self.true).sum() / total) if total else 0.0


def find_map(folder: Path, title: str) -> Path | None:
    """The probability map of a class in maps/CASE, as infer.py writes it, if it is there."""
    paths = (folder / f"probability_{title}{extension}" for extension in EXTENSIONS)
    return next((path for path in paths if path.is_file()), None)


def add_case(calibration: Calibration, probability: Path, truth: Path, label: int) -> None:
    """Count a case from its files.

    Raises:
        HnsegError: A file that cannot be read, or two grids.
    """
    image, mask = read_image(probability), read_label(truth)
    if not same_grid(image, mask):
        raise HnsegError(f"{probability}: is not on the grid of {truth}; make it anew with infer.py")
    calibration.add(to_array(image), to_array(mask) == label)
