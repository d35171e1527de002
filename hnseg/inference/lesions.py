"""The lesions of a mask, one by one (lesions.csv), and which cases a reader should look at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.imaging.grid import Grid
from hnseg.imaging.masks import positions, voxel_ml
from hnseg.inference.decision import Uptake, components, uptake

COLUMNS = ["case_id", "lesion", "class", "volume_ml", "suv_max", "suv_mean", "suv_peak"]
COLUMNS += ["x_mm", "y_mm", "z_mm", "probability", "agreement", "distance_to_roi_edge_mm"]

# PET does not resolve less: a lesion nearer to the ROI's edge than this may go on beyond it.
NEAR_EDGE_MM = 5.0
# Below it, more than every third member sees something else in the lesion.
LOW_AGREEMENT = 2 / 3
# Less coarse lesion than this is dust, which the paper's post-processing would remove from the mask too.
OUTSIDE_ML = 0.1


@dataclass(frozen=True)
class Lesion:
    """A 26-connected component of a class of the mask."""

    number: int  # from 1 on, class by class, the largest first
    name: str  # the class
    volume_ml: float  # on the CT's grid
    suv: Uptake | None  # None where the PET does not reach it
    centroid: tuple[float, float, float]  # mean voxel, LPS mm (x, y, z)
    probability: float  # mean of the fused probability of its class over its voxels
    # Share of members to which its class is the likeliest, mean over its voxels; None of a single member.
    agreement: float | None
    # From its outermost voxel's centre to the nearest face of the ROI; of several cubes that hold a voxel, of
    # the cube that holds it deepest.
    distance_to_roi_edge_mm: float

    @property
    def row(self) -> dict[str, str]:
        """Its line of lesions.csv but for the case, by column."""
        cells = [str(self.number), self.name, f"{self.volume_ml:.3f}"]
        cells += [""] * 3 if self.suv is None else [f"{value:.2f}" for value in self.suv]
        cells += [f"{c:.1f}" for c in self.centroid]
        cells += [f"{self.probability:.3f}", "" if self.agreement is None else f"{self.agreement:.3f}"]
        cells += [f"{self.distance_to_roi_edge_mm:.1f}"]
        return dict(zip(COLUMNS[1:], cells, strict=True))


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
    lesions: list[Lesion] = []
    for label, name in enumerate(classes, start=1):
        found = components(mask, label)
        sized = [(sitk.GetArrayViewFromImage(part) > 0, box, part) for box, part in found]
        sized.sort(key=lambda found: -int(found[0].sum()))
        for inside, box, part in sized:
            points = positions(part)
            x, y, z = points.mean(axis=0)
            depths = _depths(points, grids)
            lesion = Lesion(
                number=len(lesions) + 1,
                name=name,
                volume_ml=len(points) * voxel_ml(mask.GetSpacing()),
                suv=uptake(part, pet),
                centroid=(float(x), float(y), float(z)),
                probability=float(probabilities[label - 1][box][inside].mean()),
                agreement=_agreement(points, depths, [cube[label - 1] for cube in votes], grids),
                distance_to_roi_edge_mm=max(0.0, float(depths.max(axis=0).min())),
            )
            lesions.append(lesion)
    return lesions


def review_reasons(
    lesions: Sequence[Lesion], notes: Sequence[str] = (), lesion_ml_outside_roi: float | None = None
) -> list[str]:
    """Why a reader should look at a case before others, given its lesions and the cascade's notes."""
    reasons = list(notes)
    if not lesions:
        reasons.append("no lesion found")
    if lesion_ml_outside_roi is not None and lesion_ml_outside_roi >= OUTSIDE_ML:
        reasons.append(f"{lesion_ml_outside_roi:.2f} ml of coarse lesion outside the ROI")
    if near := [n.number for n in lesions if n.distance_to_roi_edge_mm < NEAR_EDGE_MM]:
        reasons.append(f"less than {NEAR_EDGE_MM:g} mm from the ROI's edge: {_named(near)}")
    if split := [n.number for n in lesions if n.agreement is not None and n.agreement < LOW_AGREEMENT]:
        reasons.append(f"members disagree: {_named(split)}")
    return reasons


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
