"""Where to look in a case: every lesion of truth and prediction, and the box around them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from hnseg.evaluation.slices import Index
from hnseg.evaluation.view import Scan
from hnseg.metrics import CLASSES, label_lesions, overlapping_lesions

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
