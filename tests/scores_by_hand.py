"""The official scores once more, by their definition: in exact fractions, with scipy's components."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage


class Nodes(NamedTuple):
    """GTVn components: found, predicted, true."""

    found: int
    predicted: int
    true: int


def find_nodes(predicted: NDArray, true: NDArray) -> Nodes:
    """Pairs of an IoU above 0.3 are taken from the best down; arrays (z, y, x), label 2."""
    (a, n), (b, m) = (ndimage.label(mask == 2, np.ones((3, 3, 3))) for mask in (predicted, true))
    iou = {
        (i, j): np.sum((a == i) & (b == j)) / np.sum((a == i) | (b == j))
        for i in range(1, n + 1)
        for j in range(1, m + 1)
    }
    pairs: list[tuple[int, int]] = []
    for i, j in sorted(iou, key=lambda pair: -iou[pair]):
        if iou[i, j] > 0.3 and i not in [p for p, _ in pairs] and j not in [t for _, t in pairs]:
            pairs.append((i, j))
    return Nodes(len(pairs), n, m)


def official_scores(cases: Sequence[tuple[sitk.Image, sitk.Image]]) -> dict[str, float]:
    """The scores of (predicted mask, true mask) on the same grid; what is on neither side scores 1."""
    tumours, both, shared, volume, nodes = [], [], Fraction(0), Fraction(0), np.zeros(3, int)
    for images in cases:
        p, t = map(sitk.GetArrayFromImage, images)
        tumours.append(_dice(p == 1, t == 1))
        both.append((tumours[-1] + _dice(p == 2, t == 2)) / 2)
        voxel = math.prod(map(Fraction, images[1].GetSpacing()))
        shared += voxel * int(np.sum((p == 2) & (t == 2)))
        volume += voxel * int(np.sum(p == 2) + np.sum(t == 2))
        nodes += find_nodes(p, t)
    found, predicted, true = map(int, nodes)
    return {
        "gtvp_dsc": float(sum(tumours) / len(cases)),
        "gtvn_dsc_agg": float(2 * shared / volume) if volume else 1.0,
        "gtvn_f1_agg": 2 * found / (predicted + true) if predicted + true else 1.0,
        "segmentation_score_2026": float(sum(both) / len(cases)),
    }


def _dice(predicted: NDArray, true: NDArray) -> Fraction:
    voxels = int(np.sum(predicted) + np.sum(true))
    return Fraction(2 * int(np.sum(predicted & true)), voxels) if voxels else Fraction(1)
