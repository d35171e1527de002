"""The official scores of HECKTOR 2025, task 1, from figures that add up over patients.

GTVp DSC is the mean over patients of 2|A∩B| / (|A| + |B|); GTVn DSCagg and F1agg are ratios of sums over all
patients. A patient enters as `CaseCounts`; patients may come in any order and from several processes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, prod
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from hnseg.metrics.lesions import Connectivity, Detections, Matching, match, overlapping_lesions

GTVP, GTVN = 1, 2
CLASSES = {"gtvp": GTVP, "gtvn": GTVN}

EmptyPolicy = Literal["one", "zero", "skip"]
"""What a patient without a class in truth and prediction scores; the organisers do not say."""
EMPTY_POLICIES: tuple[EmptyPolicy, ...] = get_args(EmptyPolicy)


@dataclass(frozen=True)
class Overlap:
    """Intersection of prediction and truth, and the volume of each, in mm³."""

    intersection: float
    prediction: float
    truth: float

    @property
    def empty(self) -> bool:
        """Whether neither side holds the class."""
        return self.prediction + self.truth == 0

    @property
    def dice(self) -> float | None:
        """2|A∩B| / (|A| + |B|): 0 where one side is empty, None where both are."""
        return None if self.empty else 2 * self.intersection / (self.prediction + self.truth)

    def dice_or(self, empty: EmptyPolicy) -> float | None:
        """As `dice`, a patient with both sides empty scoring 1, 0 or (`skip`) None."""
        return {"one": 1.0, "zero": 0.0, "skip": None}[empty] if self.empty else self.dice


@dataclass(frozen=True)
class CaseCounts:
    """One patient's share of the official scores: overlap of both classes, detected GTVn lesions."""

    gtvp: Overlap
    gtvn: Overlap
    lesions: Detections


class Scores(TypedDict):
    """The official scores of a cohort, and what they rest on; a mean over no patient is None."""

    gtvp_dsc: float | None
    gtvn_dsc_agg: float
    gtvn_f1_agg: float
    tp: int
    fp: int
    fn: int
    cases: int
    gtvp_both_empty: int
    gtvn_both_empty: int
    gtvp_dsc_by_empty_policy: dict[EmptyPolicy, float | None]
    segmentation_score_2026: float | None


def count_case(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: Sequence[float],
    *,
    connectivity: Connectivity = 26,
    matching: Matching = "greedy",
    threshold: float = 0.30,
) -> CaseCounts:
    """Measure one patient.

    Args:
        prediction: Labels (z, y, x): 0 background, 1 GTVp, 2 GTVn.
        truth: Labels on the same grid.
        spacing: (x, y, z) in mm.
        connectivity: Of GTVn lesions, see `label_lesions`.
        matching: Of GTVn lesions, see `match`.
        threshold: IoU above which a GTVn lesion counts as found.

    Raises:
        ValueError: The arrays differ in shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape} must have one shape (z, y, x)"
        )
    overlaps = overlapping_lesions(prediction == GTVN, truth == GTVN, connectivity)
    return CaseCounts(
        gtvp=_overlap(prediction == GTVP, truth == GTVP, spacing),
        gtvn=_overlap(prediction == GTVN, truth == GTVN, spacing),
        lesions=match(overlaps, matching, threshold),
    )


def aggregate(counts: Iterable[CaseCounts], *, empty: EmptyPolicy = "one") -> Scores:
    """Score a cohort by the official metrics of HECKTOR 2025, task 1.

    GTVp DSC is the mean of 2 |A ∩ B| / (|A| + |B|) over patients. GTVn DSCagg is 2 Σ |A ∩ B| / Σ (|A| + |B|)
    and GTVn F1agg 2 TP / (2 TP + FP + FN), with sums over all patients.

    Args:
        counts: One entry a patient.
        empty: What a patient without a class on either side scores, in the means over patients.
    """
    counts = list(counts)
    gtvp_dsc: dict[EmptyPolicy, float | None] = {
        policy: _mean([case.gtvp.dice_or(policy) for case in counts]) for policy in EMPTY_POLICIES
    }
    tp, fp, fn = (sum(case.lesions[i] for case in counts) for i in range(3))
    intersection = fsum(case.gtvn.intersection for case in counts)
    volume = fsum(case.gtvn.prediction + case.gtvn.truth for case in counts)
    return Scores(
        gtvp_dsc=gtvp_dsc[empty],
        gtvn_dsc_agg=ratio_or_one(2 * intersection, volume),
        gtvn_f1_agg=f1_agg(case.lesions for case in counts),
        tp=tp,
        fp=fp,
        fn=fn,
        cases=len(counts),
        gtvp_both_empty=sum(case.gtvp.empty for case in counts),
        gtvn_both_empty=sum(case.gtvn.empty for case in counts),
        gtvp_dsc_by_empty_policy=gtvp_dsc,
        segmentation_score_2026=_mean([case_score_2026(case, empty) for case in counts]),
    )


def case_score_2026(case: CaseCounts, empty: EmptyPolicy = "one") -> float | None:
    """A patient's segmentation score of 2026: (Dice GTVp + Dice GTVn) / 2, skipped classes left out."""
    return _mean([case.gtvp.dice_or(empty), case.gtvn.dice_or(empty)])


def f1_agg(detections: Iterable[Detections]) -> float:
    """Return F1agg = 2TP / (2TP + FP + FN), summed over patients; 1 without any lesion."""
    tp, fp, fn = np.sum([(0, 0, 0), *detections], axis=0).tolist()
    return ratio_or_one(2 * tp, 2 * tp + fp + fn)


def ratio_or_one(numerator: float, denominator: float) -> float:
    """An aggregated score: 1 where there was nothing to find and nothing was found."""
    return numerator / denominator if denominator else 1.0


def _overlap(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]) -> Overlap:
    voxel = prod(float(edge) for edge in spacing)
    voxels = (int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction, truth))
    return Overlap(*(count * voxel for count in voxels))


def _mean(scores: Iterable[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return fsum(known) / len(known) if known else None
