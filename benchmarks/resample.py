"""How long resampling takes: the paper's three grids from a whole-body CT and back, beside SimpleITK.

    python benchmarks/resample.py                 five repeats, SimpleITK on one thread and on two

512 x 512 x 300 voxels of 0.98 x 0.98 x 3 mm in float32. Into a grid by cubic B-spline, back as three maps of
probabilities linearly, in one process, the two in turn; medians, and how far apart the results are. hnseg
keeps to one thread whatever SimpleITK has.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.data import resample
from hnseg.imaging.grid import Grid, bounds

SIZE, SPACING = (512, 512, 300), (0.98, 0.98, 3.0)
# Size and spacing (x, y, z), and how many mm the grid's top lies below the scan's.
GRIDS = {
    "localiser": ((256, 256, 128), (2.0, 2.0, 3.0), 0.0),
    "coarse": ((144, 144, 144), (2.0, 2.0, 2.0), 70.0),
    "fine": ((144, 144, 144), (1.0, 1.0, 1.0), 130.0),
}
ROW = "{:>7} {:>9} {:>7} {:>8} {:>8} {:>6} {:>9}"


def main() -> None:
    """Prints a row for each grid, way and number of SimpleITK's threads."""
    parser = argparse.ArgumentParser(description="Times resampling beside SimpleITK.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="SimpleITK's")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    ct = sitk.GetImageFromArray(rng.normal(0, 300, SIZE[::-1]).astype(np.float32))
    ct.SetSpacing(SPACING)
    print(ROW.format("threads", "grid", "way", "ITK s", "hnseg s", "ratio", "apart"))
    for threads in arguments.threads:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        for name, (size, spacing, top) in GRIDS.items():
            grid = placed(ct, size, spacing, top)
            maps = rng.random((3, *grid.shape), dtype=np.float32)
            ways: dict[str, Callable[[], NDArray[Any]]] = {
                "in": lambda grid=grid: resample.to_grid(ct, grid, fill=resample.AIR_HU),
                "back": lambda grid=grid, maps=maps: resample.to_image(maps, grid, ct)[0],
            }
            for way, run in ways.items():
                itk, ours, apart = compared(run, arguments.repeats)
                print(ROW.format(threads, name, way, *figures(itk, ours), f"{apart:.0e}"), flush=True)


def placed(ct: sitk.Image, size: tuple[int, ...], spacing: tuple[float, ...], top: float) -> Grid:
    """A stage's grid on the scan, `top` mm below the scan's top."""
    low, high = bounds(ct)
    center = (low + high) / 2
    center[2] = high[2] - top - size[2] * spacing[2] / 2
    return Grid.centred(center, size, spacing)


def compared(run: Callable[[], NDArray[Any]], repeats: int) -> tuple[float, float, float]:
    """Median seconds of SimpleITK and of hnseg, in turn, and their largest difference."""
    seconds: dict[str, list[float]] = {"itk": [], "ours": []}
    for _ in range(repeats):
        with mock.patch.object(resample, "_lines", return_value=None):  # SimpleITK, as for oblique images
            theirs = timed(run, seconds["itk"])
        ours = timed(run, seconds["ours"])
    return median(seconds["itk"]), median(seconds["ours"]), float(np.abs(ours - theirs).max())


def timed(run: Callable[[], NDArray[Any]], seconds: list[float]) -> NDArray[Any]:
    """Runs once and notes how long it took."""
    start = time.perf_counter()
    result = run()
    seconds.append(time.perf_counter() - start)
    return result


def figures(itk: float, ours: float) -> tuple[str, str, str]:
    """Two times and their ratio, for the table."""
    return f"{itk:.3f}", f"{ours:.3f}", f"{itk / ours:.0f}"


if __name__ == "__main__":
    main()
