"""What a report is made of: masks, scores and tables of each arm, lesions and calibration of each case."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from hnseg.errors import HnsegError
from hnseg.evaluation.figures import Scan
from hnseg.evaluation.score import CaseScore, Report, evaluate
from hnseg.files import read_table
from hnseg.imaging.images import EXTENSIONS, read_image, read_label, same_grid, to_array
from hnseg.imaging.slices import Index
from hnseg.metrics import CLASSES, label_lesions, overlapping_lesions

ABLATION = "ablation.json"  # OUT/ablation.json: {"arms": […], "data": ROOT, …}, beside OUT/ARM
CASES, LESIONS = "cases.csv", "lesions.csv"  # as infer.py leaves them
_ANEW = "write it anew with infer.py"


@dataclass(frozen=True)
class CaseRow:
    """A case as a table shows it.

    Attributes:
        score: Its scores.
        look_first: Why a reader should begin with it, '' where nothing speaks for it.
        agreement: Of the lesion on which fewest members agree, 0 to 1; None where that is not known.
    """

    score: CaseScore
    look_first: str
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
        report: The scores.
        rows: One a case: what to look at first comes first, then the worst.
    """

    name: str
    folder: Path
    report: Report
    rows: list[CaseRow]


def find_arms(out: Path, truth: Path | None) -> tuple[dict[str, Path], Path]:
    """The arms of a folder.

    Args:
        out: What infer.py left, or a folder of arms with their ablation.json.
        truth: The cohort; by default the one that the ablation names.

    Returns:
        Each arm's folder by name, in the ablation's order, and the cohort.

    Raises:
        HnsegError: No such folder, a truth that is not named, or a damaged ablation.json.
    """
    if not out.is_dir():
        raise HnsegError(f"{out}: no such folder; give what infer.py wrote")
    table = out / ABLATION
    if not table.exists():
        if truth is None:
            raise HnsegError(f"{out}: has no {ABLATION} to name the cohort; add --truth ROOT")
        return {out.resolve().name: out}, truth
    names, data = _read_ablation(table)
    return {name: out / name for name in names}, truth or data


def _read_ablation(path: Path) -> tuple[list[str], Path]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names, data = [str(name) for name in content["arms"]], Path(content["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HnsegError(f"{path}: cannot be read ({error!r}); write it again") from error
    if not names:
        raise HnsegError(f"{path}: 'arms' is empty; name the arms' folders")
    return names, data


def read_arm(name: str, folder: Path, truth: Path) -> Arm:
    """Score an arm from its masks.

    Raises:
        HnsegError: A damaged table, or as `evaluate`.
    """
    _, cases = read_table(folder / CASES, _ANEW, ("case_id",))
    reasons = {row["case_id"]: row.get("look_first", "") for row in cases}
    agreements = _read_agreements(folder / LESIONS)
    report = evaluate(truth, folder)
    rows = [
        CaseRow(score, reasons.get(score.case_id, ""), agreements.get(score.case_id))
        for score in report.cases
    ]
    return Arm(name, folder, report, worst_first(rows))


def _read_agreements(path: Path) -> dict[str, float]:
    """By case, that of the lesion on which fewest members agree."""
    agreements: dict[str, float] = {}
    for row in read_table(path, _ANEW, ("case_id",))[1]:
        if cell := row.get("agreement"):
            share = _share(cell, f"{path}: {row['case_id']}")
            agreements[row["case_id"]] = min(share, agreements.get(row["case_id"], share))
    return agreements


def _share(cell: str, where: str) -> float:
    try:
        share = float(cell)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise HnsegError(f"{where} has agreement {cell[:30]!r}, no number from 0 to 1; {_ANEW}")
    return share


def worst_first(rows: Sequence[CaseRow]) -> list[CaseRow]:
    """Cases that infer.py says to look at first, then the others, each by Dice from the worst on."""
    return sorted(rows, key=lambda row: (not row.look_first, row.dice, row.score.case_id))


MARGIN_MM = 25.0  # of anatomy around the lesions
LEAST_MM = 120.0  # the least the box measures: less shows no neck


@dataclass(frozen=True)
class Finding:
    """What hangs together in truth and prediction taken as one, of one class.

    Attributes:
        name: gtvp or gtvn.
        voxel: (x, y, z) on the CT's grid: the one nearest its middle.
        place: The same in patient space (x, y, z), LPS mm.
        truth_ml: True volume in it; None where the truth is not known.
        predicted_ml: Predicted volume in it.
    """

    name: str
    voxel: Index
    place: tuple[float, float, float]
    truth_ml: float | None
    predicted_ml: float


def find_lesions(scan: Scan) -> list[Finding]:
    """The findings of a scan, class by class, the largest first."""
    masks = scan.masks()
    voxel_ml = float(np.prod(scan.ct.GetSpacing())) / 1000
    findings = []
    for name, label in CLASSES.items():
        sides = [mask == label for mask in masks]
        found, count = label_lesions(np.logical_or.reduce(sides))
        for number, box in enumerate(find_objects(found, max_label=count), start=1):
            inside = found[box] == number
            *truth, predicted = [float((side[box] & inside).sum()) * voxel_ml for side in sides]
            voxel = _middle(inside, box)
            place = scan.ct.TransformIndexToPhysicalPoint(voxel)
            findings.append(Finding(name, voxel, place, truth[0] if truth else None, predicted))
    order = list(CLASSES)
    return sorted(findings, key=lambda f: (order.index(f.name), -max(f.truth_ml or 0, f.predicted_ml)))


def lesion_box(scan: Scan, focus: Index) -> tuple[Index, Index]:
    """Start and size (x, y, z) of the part of the CT around all lesions, or `focus` where there are none."""
    held = np.logical_or.reduce([mask > 0 for mask in scan.masks()])
    (box,) = find_objects(held.view(np.uint8)) or [tuple(slice(i, i + 1) for i in focus[::-1])]
    start, size = [], []
    spans = zip(box[::-1], scan.ct.GetSpacing(), scan.ct.GetSize(), strict=True)
    for span, spacing, available in spans:
        length = (span.stop - span.start) * spacing
        margin = max(MARGIN_MM, (LEAST_MM - length) / 2) / spacing
        first = max(int(span.start - margin), 0)
        start.append(first)
        size.append(min(int(np.ceil(span.stop + margin)), available) - first)
    return (start[0], start[1], start[2]), (size[0], size[1], size[2])


def best_overlaps(scan: Scan) -> list[tuple[float, float]]:
    """(ml, IoU) of every true node: its volume, and its largest overlap with a predicted one."""
    if scan.truth is None:
        return []
    truth, prediction = scan.masks()
    overlaps = overlapping_lesions(prediction == CLASSES["gtvn"], truth == CLASSES["gtvn"], 26)
    best = np.zeros(len(overlaps.truth_size))
    np.maximum.at(best, overlaps.truth, overlaps.iou)
    voxel_ml = float(np.prod(scan.ct.GetSpacing())) / 1000
    volumes = overlaps.truth_size * voxel_ml
    return list(zip(volumes.tolist(), best.tolist(), strict=True))


def _middle(inside: NDArray[np.bool_], box: tuple[slice, ...]) -> Index:
    """Index (x, y, z) in the scan of the voxel of a lesion nearest to its mean voxel."""
    voxels = np.argwhere(inside)
    z, y, x = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()].tolist()
    return x + box[2].start, y + box[1].start, z + box[0].start


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
