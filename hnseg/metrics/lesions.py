"""Lesions, and which predicted lesion detects which ground-truth lesion.

A lesion is a connected component of one label. The organisers of HECKTOR 2025 count a detection where a
ground-truth and a predicted lesion overlap enough; they leave connectivity and matching open, so both are
options.
"""

from typing import Literal, NamedTuple, get_args

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Connectivity = Literal[6, 18, 26]
Matching = Literal["greedy", "hungarian", "group"]
CONNECTIVITIES: tuple[Connectivity, ...] = get_args(Connectivity)
MATCHINGS: tuple[Matching, ...] = get_args(Matching)


class Detections(NamedTuple):
    """Lesions found (tp), predicted where there is none (fp) and missed (fn)."""

    tp: int
    fp: int
    fn: int

    @property
    def f1_terms(self) -> tuple[int, int]:
        """2TP and 2TP + FP + FN: F1agg is the ratio of their sums over patients."""
        return 2 * self.tp, 2 * self.tp + self.fp + self.fn


class Overlaps(NamedTuple):
    """Every overlapping pair of a ground-truth and a predicted lesion; indices start at 0.

    Attributes:
        truth: (pairs,) index of the ground-truth lesion.
        prediction: (pairs,) index of the predicted lesion.
        intersection: (pairs,) shared voxels.
        truth_size: (ground-truth lesions,) voxels of each.
        prediction_size: (predicted lesions,) voxels of each.
    """

    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    intersection: NDArray[np.int64]
    truth_size: NDArray[np.int64]
    prediction_size: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        """(pairs,) intersection over union of the whole lesions of each pair."""
        union = self.truth_size[self.truth] + self.prediction_size[self.prediction] - self.intersection
        return self.intersection / union

    def keep_predictions(self, keep: NDArray[np.bool_]) -> "Overlaps":
        """Drop the predicted lesions where `keep` (predicted lesions,) is false, and renumber the others."""
        pairs, number = keep[self.prediction], np.cumsum(keep) - 1
        return self._replace(
            truth=self.truth[pairs],
            prediction=number[self.prediction[pairs]],
            intersection=self.intersection[pairs],
            prediction_size=self.prediction_size[keep],
        )


def label_lesions(
    mask: NDArray[np.bool_], connectivity: Connectivity = 26
) -> tuple[NDArray[np.integer], int]:
    """Number the connected components of a mask from 1 on, in the order of their first voxel.

    Args:
        mask: (z, y, x), true inside.
        connectivity: 6 joins voxels that share a face, 18 also an edge, 26 also a corner.

    Returns:
        The numbered components (z, y, x), 0 outside, and how many there are.
    """
    lesions, count = cc3d.connected_components(
        np.ascontiguousarray(mask), connectivity=connectivity, binary_image=True, return_N=True
    )
    return lesions, int(count)


def overlapping_lesions(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], connectivity: Connectivity = 26
) -> Overlaps:
    """Split two masks (z, y, x) into lesions and intersect every pair of them."""
    predicted, predicted_count = label_lesions(prediction, connectivity)
    true, true_count = label_lesions(truth, connectivity)
    both = prediction & truth
    # One number for each pair of lesions; the last index of each side is never 0 inside `both`.
    pair = (true[both].astype(np.int64) - 1) * predicted_count + predicted[both].astype(np.int64) - 1
    pairs, intersection = np.unique(pair, return_counts=True)
    truth_index, prediction_index = np.divmod(pairs, max(predicted_count, 1))
    return Overlaps(
        truth=truth_index,
        prediction=prediction_index,
        intersection=intersection,
        truth_size=np.bincount(true[truth], minlength=true_count + 1)[1:],
        prediction_size=np.bincount(predicted[prediction], minlength=predicted_count + 1)[1:],
    )


def match(overlaps: Overlaps, matching: Matching = "greedy", threshold: float = 0.30) -> Detections:
    """Decide which lesions were found.

    - `greedy` (the organisers'): pairs with IoU > threshold, in descending order of IoU, each accepted if
      neither of its lesions is taken yet; ties go to the lower ground-truth index.
    - `hungarian`: as many pairs with IoU > threshold as possible, among those the largest summed IoU.
    - `group`: lesions that overlap form groups; a group with IoU >= threshold is one lesion found, any other
      is one false and one missed.
    """
    if matching == "group":
        return _match_groups(overlaps, threshold)
    tp = (_match_greedily if matching == "greedy" else _match_optimally)(overlaps, threshold)
    return Detections(tp, fp=len(overlaps.prediction_size) - tp, fn=len(overlaps.truth_size) - tp)


def _match_greedily(overlaps: Overlaps, threshold: float) -> int:
    iou = overlaps.iou
    order = np.lexsort((overlaps.prediction, overlaps.truth, -iou))
    found, used = set[int](), set[int]()
    for pair in order[iou[order] > threshold]:
        truth, prediction = int(overlaps.truth[pair]), int(overlaps.prediction[pair])
        if truth not in found and prediction not in used:
            found.add(truth)
            used.add(prediction)
    return len(found)


def _match_optimally(overlaps: Overlaps, threshold: float) -> int:
    iou = overlaps.iou
    passes = iou > threshold
    # All IoUs of an assignment together stay below one further pair, so that the number of pairs comes first.
    gain = np.zeros((len(overlaps.truth_size), len(overlaps.prediction_size)))
    gain[overlaps.truth[passes], overlaps.prediction[passes]] = 1 + iou[passes] / (min(gain.shape) + 1)
    return int(np.count_nonzero(gain[linear_sum_assignment(gain, maximize=True)]))


def _match_groups(overlaps: Overlaps, threshold: float) -> Detections:
    true_count, predicted_count = len(overlaps.truth_size), len(overlaps.prediction_size)
    edges = coo_array(
        (np.ones(len(overlaps.truth)), (overlaps.truth, overlaps.prediction + true_count)),
        shape=(true_count + predicted_count,) * 2,
    )
    count, group = connected_components(edges, directed=False)
    of_truth, of_prediction = group[:true_count], group[true_count:]
    true = np.bincount(of_truth, overlaps.truth_size, count)
    predicted = np.bincount(of_prediction, overlaps.prediction_size, count)
    shared = np.bincount(of_truth[overlaps.truth], overlaps.intersection, count)
    found = (shared > 0) & (shared / (true + predicted - shared) >= threshold)
    return Detections(
        tp=int(found.sum()),
        fp=int(((predicted > 0) & ~found).sum()),
        fn=int(((true > 0) & ~found).sum()),
    )
