"""What a report is made of: masks, scores and tables of each arm, lesions and calibration of each case."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from hnseg.errors import HnsegError
from hnseg.evaluation.figures import Scan
from hnseg.evaluation.score import CaseScore, CohortScore, evaluate
from hnseg.evaluation.tables import ABLATION
from hnseg.files import read_table
from hnseg.imaging.images import EXTENSIONS, read_image, read_label, same_grid, to_array
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.slices import Index
from hnseg.metrics.lesions import label_lesions, overlapping_lesions
from hnseg.metrics.official import CLASSES, GTVN

_REMEDY = "write it anew with infer.py"


@dataclass(frozen=True)
class CaseRow:
    """A case as a table shows it.

    Attributes:
        score: Its scores.
        review_reason: Why a reader should review it first, '' for none.
        agreement: Share of members that agree, 0 to 1, of the lesion where it is least; None if unknown.
    """

    score: CaseScore
    review_reason: str
    agreement: float | None

    @property
    def dice(self) -> float:
        """Mean of the Dice of the classes that either side holds; 1 where neither holds any."""
        both = (self.score.counts.gtvp.dice, self.score.counts.gtvn.dice)
        known = [dice for dice in both if dice is not None]
        return sum(known) / len(known) if known else 1.0


@dataclass(frozen=True)
class Arm:
    """The masks of one arm and their scores.

    Attributes:
        name: The arm's, or the folder's where there is but one.
        folder: CASE.nii.gz, cases.csv, lesions.csv, maps/.
        cohort: The scores.
        rows: One a case: cases to review first, then the others, each from the worst Dice on.
    """

    name: str
    folder: Path
    cohort: CohortScore
    rows: list[CaseRow]


def find_arms(out: Path, truth: Path | None) -> tuple[dict[str, Path], Path]:
    """The arms of a folder.

    Args:
        out: What infer.py left, or a folder of arms with their ablation.json.
        truth: The cohort; by default the one that the ablation names.

    Returns:
        Each arm's folder by name, in the ablation's order, and the cohort.

    Raises:
        HnsegError: No such folder, no cohort, or a damaged ablation.json.
    """
    if not out.is_dir():
        raise HnsegError(f"{out}: no such folder; give what infer.py wrote")
    table = out / ABLATION
    if not table.exists():
        if truth is None:
            raise HnsegError(f"{out}: has no {ABLATION} to name the cohort; add --truth ROOT")
        return {out.resolve().name: out}, truth
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
        return {name: out / name for name in content["arms"]}, truth or Path(content["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HnsegError(f"{table}: cannot be read ({error!r}); write it again") from error


def read_arm(name: str, folder: Path, truth: Path) -> Arm:
    """Score an arm from its masks.

    Raises:
        HnsegError: A damaged table.
    """
    _, cases = read_table(folder / "cases.csv", _REMEDY, ("case_id",))
    reasons = {row["case_id"]: row.get("review_reason", "") for row in cases}
    agreements = _read_agreements(folder / "lesions.csv")
    cohort = evaluate(truth, folder)
    rows = [
        CaseRow(score, reasons.get(score.case_id, ""), agreements.get(score.case_id))
        for score in cohort.cases
    ]
    rows.sort(key=lambda row: (not row.review_reason, row.dice, row.score.case_id))
    return Arm(name, folder, cohort, rows)


def _read_agreements(path: Path) -> dict[str, float]:
    """By case, the agreement of the lesion on which fewest members agree."""
    agreements: dict[str, float] = {}
    for row in read_table(path, _REMEDY, ("case_id",))[1]:
        case_id, cell = row["case_id"], row.get("agreement")
        if cell:
            try:
                agreements[case_id] = min(float(cell), agreements.get(case_id, 1.0))
            except ValueError as error:
                raise HnsegError(f"{path}: {case_id} has agreement {cell!r}, no number; {_REMEDY}") from error
    return agreements


MARGIN_MM = 25.0  # of anatomy around the lesions
LEAST_MM = 120.0  # smallest edge of the box: less does not show the whole neck


@dataclass(frozen=True)
class LesionFinding:
    """A connected component of the union of ground truth and prediction, of one class.

    Attributes:
        name: The class.
        voxel: (x, y, z) on the CT's grid: the one nearest its mean voxel.
        position: The same in patient space (x, y, z), LPS mm.
        truth_ml: Ground-truth volume in it; None without ground truth.
        predicted_ml: Predicted volume in it.
    """

    name: str
    voxel: Index
    position: tuple[float, float, float]
    truth_ml: float | None
    predicted_ml: float


def find_lesions(scan: Scan) -> list[LesionFinding]:
    """The findings of a scan, class by class, the largest first."""
    masks, ml = scan.masks(), voxel_ml(scan.ct.GetSpacing())
    findings = []
    for name, label in CLASSES.items():
        sides = [mask == label for mask in masks]
        components, count = label_lesions(np.logical_or.reduce(sides))
        found = []
        for number, box in enumerate(cc3d.statistics(components)["bounding_boxes"][1 : count + 1], start=1):
            inside = components[box] == number
            *truth, predicted = [float((side[box] & inside).sum()) * ml for side in sides]
            voxels = np.argwhere(inside)
            middle = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
            z, y, x = (int(i) + int(part.start) for i, part in zip(middle, box, strict=True))
            position = scan.ct.TransformIndexToPhysicalPoint((x, y, z))
            found.append(LesionFinding(name, (x, y, z), position, truth[0] if truth else None, predicted))
        findings += sorted(found, key=lambda finding: -max(finding.truth_ml or 0, finding.predicted_ml))
    return findings


def lesion_box(scan: Scan, focus: Index) -> tuple[Index, Index]:
    """Start and size (x, y, z) of the part of the CT around all lesions, or `focus` where there are none."""
    labelled = np.logical_or.reduce([mask > 0 for mask in scan.masks()])
    (box,) = find_objects(labelled.view(np.uint8)) or [tuple(slice(i, i + 1) for i in focus[::-1])]
    first = np.array([span.start for span in box[::-1]])
    last = np.array([span.stop for span in box[::-1]])
    spacing = np.array(scan.ct.GetSpacing())
    margin = np.maximum(MARGIN_MM, (LEAST_MM - (last - first) * spacing) / 2) / spacing
    start = np.maximum((first - margin).astype(int), 0)
    stop = np.minimum(np.ceil(last + margin).astype(int), scan.ct.GetSize())
    return tuple(start.tolist()), tuple((stop - start).tolist())


def best_overlaps(scan: Scan) -> list[tuple[float, float]]:
    """(ml, IoU) of every ground-truth node: its volume, and its largest overlap with a predicted node."""
    if scan.truth is None:
        return []
    truth, prediction = scan.masks()
    overlaps = overlapping_lesions(prediction == GTVN, truth == GTVN)
    best = np.zeros(len(overlaps.truth_size))
    np.maximum.at(best, overlaps.truth, overlaps.iou)
    volumes = overlaps.truth_size * voxel_ml(scan.ct.GetSpacing())
    return list(zip(volumes.tolist(), best.tolist(), strict=True))


BINS = 10
# Below it lies most of a scan, certain background: with it every map would look calibrated.
LEAST = 0.01


@dataclass
class Calibration:
    """Counts over probability bins of equal width, summed over cases.

    Attributes:
        voxels: (BINS,) voxels with a probability of `LEAST` or more.
        probability: (BINS,) sum of their probabilities.
        true: (BINS,) number that the ground truth labels as the class.
    """

    voxels: NDArray[np.float64] = field(default_factory=partial(np.zeros, BINS))
    probability: NDArray[np.float64] = field(default_factory=partial(np.zeros, BINS))
    true: NDArray[np.float64] = field(default_factory=partial(np.zeros, BINS))

    def add(self, probability: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Count a case, both (z, y, x) on one grid."""
        counted = probability >= LEAST
        values = probability[counted].astype(np.float64)
        bins = np.minimum((values * BINS).astype(int), BINS - 1)
        self.voxels += np.bincount(bins, minlength=BINS)
        self.probability += np.bincount(bins, values, minlength=BINS)
        self.true += np.bincount(bins, truth[counted], minlength=BINS)

    def add_maps(self, folder: Path, name: str, truth: Path) -> None:
        """Count a case from its files; without the class's probability map in `folder`, nothing.

        Raises:
            HnsegError: A file that cannot be read, or two grids.
        """
        paths = (folder / f"probability_{name}{extension}" for extension in EXTENSIONS)
        for path in filter(Path.is_file, paths):
            probability, mask = read_image(path), read_label(truth)
            if not same_grid(probability, mask):
                raise HnsegError(f"{path}: is not on the grid of {truth}; {_REMEDY}")
            self.add(to_array(probability), to_array(mask) == CLASSES[name])

    @property
    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean probability and share of voxels of the class, of the bins that hold any voxel."""
        held = self.voxels > 0
        return self.probability[held] / self.voxels[held], self.true[held] / self.voxels[held]

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean distance of both, bins weighted by voxels."""
        total = self.voxels.sum()
        return float(np.abs(self.probability - self.true).sum() / total) if total else 0.0
