"""The official scores of HECKTOR 2025, task 1, and the segmentation score of 2026.

GTVp DSC is the mean over patients of 2|A∩B| / (|A| + |B|). GTVn DSCagg = 2 Σ|A∩B| / Σ(|A| + |B|) and GTVn
F1agg = 2TP / (2TP + FP + FN) are ratios of sums over all patients; TP counts ground-truth lesions, which are
26-connected components, that a predicted lesion overlaps by an IoU above 0.3. Each score is thus a ratio of
sums over patients, in any order and from any number of processes: see `CaseCounts.terms`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, prod
from typing import Any, Literal, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from hnseg.metrics.lesions import Detections, match, overlapping_lesions

CLASSES: Mapping[str, int] = {"GTVp": 1, "GTVn": 2}
"""Labels of the ground truth by class; 0 is background."""
GTVP, GTVN = CLASSES.values()

EmptyPolicy = Literal["one", "zero", "skip"]
"""What a patient scores whose ground truth and prediction both lack the class; the organisers do not say."""
EMPTY_POLICIES: tuple[EmptyPolicy, ...] = get_args(EmptyPolicy)

Score = Literal["gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg", "segmentation_score_2026"]
SCORES: tuple[Score, ...] = get_args(Score)
TITLES: Mapping[Score, str] = dict(
    zip(SCORES, ("GTVp DSC", "GTVn DSCagg", "GTVn F1agg", "2026 score"), strict=True)
)

Terms = tuple[float, float]
"""What a patient adds to the numerator and to the denominator of a score."""


@dataclass(frozen=True)
class Overlap:
    """Intersection of prediction and ground truth, and the volume of each, in mm³."""

    intersection: float
    prediction: float
    truth: float

    @classmethod
    def of(cls, prediction: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_mm3: float) -> "Overlap":
        """Measure two masks (z, y, x) with voxels of `voxel_mm3`."""
        masks = prediction & truth, prediction, truth
        return cls(*(int(np.count_nonzero(mask)) * voxel_mm3 for mask in masks))

    @property
    def dice_terms(self) -> Terms:
        """2|A∩B| and |A| + |B|."""
        return 2 * self.intersection, self.prediction + self.truth

    @property
    def dice(self) -> float | None:
        """2|A∩B| / (|A| + |B|): 0 where one side is empty, None where both are."""
        numerator, denominator = self.dice_terms
        return numerator / denominator if denominator else None

    def dice_or(self, empty: EmptyPolicy) -> float | None:
        """As `dice`; a patient with both sides empty scores 1, 0 or (`skip`) None."""
        return {"one": 1.0, "zero": 0.0, "skip": None}[empty] if self.dice is None else self.dice


@dataclass(frozen=True)
class CaseCounts:
    """One patient's share of the official scores: overlap of both classes, detected GTVn lesions."""

    gtvp: Overlap
    gtvn: Overlap
    lesions: Detections

    @property
    def overlaps(self) -> dict[str, Overlap]:
        """The overlap by class."""
        return dict(zip(CLASSES, (self.gtvp, self.gtvn), strict=True))

    def score_2026(self, empty: EmptyPolicy = "one") -> float | None:
        """(Dice GTVp + Dice GTVn) / 2, skipped classes left out."""
        return mean(overlap.dice_or(empty) for overlap in self.overlaps.values())

    def terms(self, empty: EmptyPolicy = "one") -> tuple[Terms, ...]:
        """(numerator, denominator) of each of `SCORES`, to be summed over patients before the division."""
        gtvp_dsc, score_2026 = (
            (0.0, 0.0) if score is None else (score, 1.0)
            for score in (self.gtvp.dice_or(empty), self.score_2026(empty))
        )
        return gtvp_dsc, self.gtvn.dice_terms, self.lesions.f1_terms, score_2026


class Scores(TypedDict):
    """The official scores of a cohort and the counts behind them; a mean over no patient is None."""

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


def count_case(prediction: NDArray[Any], truth: NDArray[Any], spacing: Sequence[float]) -> CaseCounts:
    """Measure one patient as the challenge does.

    Args:
        prediction: Labels (z, y, x), see `CLASSES`.
        truth: Labels on the same grid.
        spacing: (x, y, z) in mm.

    Raises:
        ValueError: The arrays differ in shape.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape (z, y, x)")
    voxel_mm3 = prod(float(edge) for edge in spacing)
    gtvp, gtvn = (Overlap.of(prediction == c, truth == c, voxel_mm3) for c in (GTVP, GTVN))
    return CaseCounts(gtvp, gtvn, match(overlapping_lesions(prediction == GTVN, truth == GTVN)))


def aggregate(counts: Iterable[CaseCounts], *, empty: EmptyPolicy = "one") -> Scores:
    """Score a cohort, of which `counts` has an entry for each patient."""
    counts = list(counts)
    _, dsc_agg, f1_agg, _ = zip(*(case.terms(empty) for case in counts), strict=True) if counts else [()] * 4
    by_policy = {policy: mean(case.gtvp.dice_or(policy) for case in counts) for policy in EMPTY_POLICIES}
    tp, fp, fn = (sum(case.lesions[i] for case in counts) for i in range(3))
    return Scores(
        gtvp_dsc=by_policy[empty],
        gtvn_dsc_agg=ratio_of_sums(dsc_agg),
        gtvn_f1_agg=ratio_of_sums(f1_agg),
        tp=tp,
        fp=fp,
        fn=fn,
        cases=len(counts),
        gtvp_both_empty=sum(case.gtvp.dice is None for case in counts),
        gtvn_both_empty=sum(case.gtvn.dice is None for case in counts),
        gtvp_dsc_by_empty_policy=by_policy,
        segmentation_score_2026=mean(case.score_2026(empty) for case in counts),
    )


def ratio_of_sums(terms: Iterable[Terms]) -> float:
    """An aggregated score; 1 where there was nothing to find and nothing was found."""
    terms = list(terms)
    numerator, denominator = (fsum(term[side] for term in terms) for side in (0, 1))
    return numerator / denominator if denominator else 1.0


def mean(scores: Iterable[float | None]) -> float | None:
    """The mean of the scores that are not None; None where there is none."""
    known = [score for score in scores if score is not None]
    return fsum(known) / len(known) if known else None
