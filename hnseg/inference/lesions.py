"""What was found, lesion by lesion (lesions.csv), and which cases a reader should look at first."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.errors import HnsegError
from hnseg.files import read_table, replacing
from hnseg.imaging.grid import Grid, Point
from hnseg.imaging.masks import positions
from hnseg.inference.postprocess import Uptake, components, uptake

COLUMNS = ["case_id", "lesion", "class", "volume_ml", "suv_max", "suv_mean", "suv_peak"]
COLUMNS += ["x_mm", "y_mm", "z_mm", "probability", "agreement", "face_mm"]

# PET does not resolve less: a lesion nearer to a face than this may go on beyond it.
NEAR_FACE_MM = 5.0
# Below it, more than every third member sees something else in the lesion.
LOW_AGREEMENT = 2 / 3
# Less coarse lesion than this is dust, which the paper's post-processing would remove from the mask too.
OUTSIDE_ML = 0.1


@dataclass(frozen=True)
class Lesion:
    """A 26-connected component of one class of the mask.

    Args:
        number: From 1 on, class by class, the largest first.
        name: The class.
        volume_ml: Its volume on the CT's grid.
        suv: SUVmax, SUVmean and SUVpeak; None where the PET does not reach it.
        centroid: Mean voxel, LPS mm (x, y, z).
        probability: Mean of the fused probability of its class over its voxels.
        agreement: Share of members to which its class is the likeliest, mean over its voxels; None where
            there is one member.
        face_mm: From its outermost voxel's centre to the nearest face of the ROI. Of several cubes that hold
            a voxel, the one counts that holds it deepest.
    """

    number: int
    name: str
    volume_ml: float
    suv: Uptake | None
    centroid: Point
    probability: float
    agreement: float | None
    face_mm: float

    @property
    def row(self) -> dict[str, str]:
        """Its line of lesions.csv but for the case, by column."""
        suv = [""] * 3 if self.suv is None else [f"{value:.2f}" for value in self.suv]
        return {
            "lesion": str(self.number),
            "class": self.name,
            "volume_ml": f"{self.volume_ml:.3f}",
            **dict(zip(("suv_max", "suv_mean", "suv_peak"), suv, strict=True)),
            **dict(zip(("x_mm", "y_mm", "z_mm"), (f"{c:.1f}" for c in self.centroid), strict=True)),
            "probability": f"{self.probability:.3f}",
            "agreement": "" if self.agreement is None else f"{self.agreement:.3f}",
            "face_mm": f"{self.face_mm:.1f}",
        }


def measure(
    mask: sitk.Image,
    pet: sitk.Image,
    classes: Sequence[str],
    probabilities: NDArray[np.float32],
    votes: Sequence[NDArray[np.float32]],
    grids: Sequence[Grid],
) -> list[Lesion]:
    """Describes every lesion of a mask.

    Args:
        mask: uint8, any grid, normally the part of the CT's that the ROI reaches.
        pet: SUV, on a grid of its own.
        classes: Names of the labels 1, 2, ...
        probabilities: (K, z, y, x) of these classes on the mask's grid.
        votes: Share of members to which each class is the likeliest, (K, z, y, x) on each cube: a member's
            label has no value between two voxels. Empty for one member.
        grids: The cubes of the ROI, one or several.

    Returns:
        Class by class, the largest first.
    """
    voxel_ml = float(np.prod(mask.GetSpacing())) / 1000
    lesions: list[Lesion] = []
    for label, name in enumerate(classes, start=1):
        found = components(mask, label)
        sized = [(sitk.GetArrayViewFromImage(part) > 0, box, part) for box, part in found]
        sized.sort(key=lambda one: -int(one[0].sum()))
        for inside, box, part in sized:
            points = positions(part)
            depths = _depths(points, grids)
            lesion = Lesion(
                number=len(lesions) + 1,
                name=name,
                volume_ml=len(points) * voxel_ml,
                suv=uptake(part, pet),
                centroid=points.mean(axis=0),
                probability=float(probabilities[label - 1][box][inside].mean()),
                agreement=_agreement(points, depths, [cube[label - 1] for cube in votes], grids),
                face_mm=max(0.0, float(depths.max(axis=0).min())),
            )
            lesions.append(lesion)
    return lesions


def look_first(
    lesions: Sequence[Lesion], fallbacks: Sequence[str] = (), outside_ml: float | None = None
) -> str:
    """Why a reader should look at a case before others, in words; empty where nothing speaks for it.

    Args:
        lesions: All of the case.
        fallbacks: What was done where a stage found nothing, and what of the ROI the scan does not show.
        outside_ml: Coarse lesion outside the fine ROI, ml.
    """
    reasons = list(fallbacks)
    if not lesions:
        reasons.append("no lesion found")
    if outside_ml is not None and outside_ml >= OUTSIDE_ML:
        reasons.append(f"{outside_ml:.2f} ml of coarse lesion outside the ROI")
    if near := [n.number for n in lesions if n.face_mm < NEAR_FACE_MM]:
        reasons.append(f"less than {NEAR_FACE_MM:g} mm from the ROI's face: {_named(near)}")
    if split := [n.number for n in lesions if n.agreement is not None and n.agreement < LOW_AGREEMENT]:
        reasons.append(f"members disagree: {_named(split)}")
    return "; ".join(reasons)


def write_lesions(lesions: Mapping[str, Sequence[Lesion]], path: Path) -> None:
    """Writes lesions.csv whole, sorted by case and lesion; rows of cases that are not given stay.

    Args:
        lesions: By case; a case without lesions loses the rows that it had.
        path: The file.

    Raises:
        HnsegError: The file has other columns, or cannot be written.
    """
    rows = [row for row in read_lesions(path) if row["case_id"] not in lesions]
    rows += [{"case_id": case_id, **lesion.row} for case_id, found in lesions.items() for lesion in found]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["case_id"], int(row["lesion"]))))


def read_lesions(path: Path) -> list[dict[str, str]]:
    """The rows of lesions.csv; none where there is no such file.

    Raises:
        HnsegError: The file has other columns, or cannot be read.
    """
    columns, rows = read_table(path, "move the file away")
    if path.exists() and columns != COLUMNS:
        raise HnsegError(f"{path}: its columns are not {','.join(COLUMNS)}; move the file away")
    return rows


def _depths(points: NDArray[np.float64], grids: Sequence[Grid]) -> NDArray[np.float64]:
    """How far the points (n, 3) lie from the nearest face of each cube, mm, (cubes, n); negative outside."""
    return np.stack([(grid.extent / 2 - np.abs(points - grid.center)).min(axis=1) for grid in grids])


def _agreement(
    points: NDArray[np.float64],
    depths: NDArray[np.float64],
    votes: Sequence[NDArray[np.float32]],
    grids: Sequence[Grid],
) -> float | None:
    """Mean vote (z, y, x) at the points: that of the nearest voxel in the cube that holds a point deepest."""
    if not votes:
        return None
    total = 0.0
    for number, (grid, cube) in enumerate(zip(grids, votes, strict=True)):
        here = points[depths.argmax(axis=0) == number]
        index = np.rint((here - grid.origin) / grid.spacing).astype(int)
        x, y, z = np.clip(index, 0, np.asarray(grid.size) - 1).T
        total += float(cube[z, y, x].sum(dtype=np.float64))
    return total / len(points)


def _named(numbers: Sequence[int]) -> str:
    return f"lesion{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
