"""Whether two arms differ on the same patients, and which of several is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from hnseg.errors import HnsegError
from hnseg.evaluation.intervals import (
    RESAMPLES,
    SCORES,
    Array,
    Interval,
    Score,
    interval,
    ratio,
    resample,
    score_terms,
)
from hnseg.metrics import EmptyPolicy, Scores, aggregate

if TYPE_CHECKING:
    from hnseg.evaluation.report import CaseScore

_ROUNDING = 1e-10  # two permutations' differences closer than this are one


@dataclass(frozen=True)
class Comparison:
    """The difference of an arm to the baseline, with its interval, and the p-value that there is none."""

    difference: Interval
    p: float


def compare(
    arm: Sequence["CaseScore"],
    baseline: Sequence["CaseScore"],
    *,
    empty: EmptyPolicy = "one",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Score, Comparison]:
    """Compare an arm with the baseline on the same patients, by each official score.

    Patients are resampled with both arms for the interval, arms exchanged within patients for the p-value.

    Args:
        arm: One entry a patient.
        baseline: The same patients.
        empty: What a patient without a class on either side scores.
        resamples: How often patients are drawn anew, and arms exchanged.
        seed: Of both.

    Raises:
        HnsegError: The arms were scored on different patients.
    """
    arm, baseline = _pair(arm, baseline)
    ours, theirs = (score_terms(cases, empty) for cases in (arm, baseline))
    scores, reference = (aggregate((c.counts for c in cases), empty=empty) for cases in (arm, baseline))
    weights = resample(len(arm), resamples, seed)
    comparisons = {}
    for score in SCORES:
        terms = np.stack([ours[score], theirs[score]], axis=1)
        value, other = scores[score], reference[score]
        difference = None if value is None or other is None else value - other
        comparisons[score] = Comparison(
            interval(difference, terms, weights, lowest=-1), permutation_p(terms, resamples, seed)
        )
    return comparisons


def _pair(
    arm: Sequence["CaseScore"], baseline: Sequence["CaseScore"]
) -> tuple[Sequence["CaseScore"], Sequence["CaseScore"]]:
    ours, theirs = ({case.case_id: case for case in cases} for cases in (arm, baseline))
    if unpaired := sorted(ours.keys() ^ theirs.keys()):
        raise HnsegError(
            f"the arms were not scored on the same patients ({', '.join(unpaired)} in one alone); "
            "predict every case with every arm"
        )
    return list(ours.values()), [theirs[case_id] for case_id in ours]


def permutation_p(terms: Array, permutations: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value that the two arms are exchangeable within each patient.

    The scores are recomputed after exchanging the arms' terms in every subset of patients, or in
    `permutations` random ones where there are more subsets; then the observed one counts as one of them
    (Phipson & Smyth 2010), so that p is never 0.

    Args:
        terms: (patients, 2 arms, 2) numerators and denominators.
        permutations: Most subsets to look at.
        seed: Of the random ones.
    """
    gain = terms[:, 1] - terms[:, 0]
    gain = gain[gain.any(axis=1)]  # elsewhere an exchange changes nothing
    exact = 2 ** len(gain) <= permutations
    exchange = _every_subset(len(gain)) if exact else _random_subsets(len(gain), permutations, seed)
    first, second = terms.sum(axis=0)
    moved = exchange @ gain
    differences = np.abs(ratio(first + moved) - ratio(second - moved))
    observed = abs(ratio(first) - ratio(second))
    extreme = np.count_nonzero(differences >= observed - _ROUNDING)
    return float(extreme / len(exchange) if exact else (extreme + 1) / (len(exchange) + 1))


def _every_subset(members: int) -> Array:
    return (np.arange(2**members)[:, None] >> np.arange(members) & 1).astype(np.float64)


def _random_subsets(members: int, subsets: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(2, size=(subsets, members)).astype(np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for being several (Holm 1979): the chance that any of them is wrong stays below p."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def borda_ranks(arms: Mapping[str, Scores]) -> dict[str, float]:
    """Rank arms as the challenge does; 1 is best, ties share their mean rank.

    The final rank is by the sum of the rank by GTVp DSC and the rank for GTVn, which in turn is by the sum of
    the ranks by GTVn DSCagg and GTVn F1agg (evaluation.md, "Ranking").

    Args:
        arms: Official scores by name; a mean over no patient counts as 1, as the aggregated scores do.
    """

    def by(score: Score) -> NDArray[np.float64]:
        values = (scores[score] for scores in arms.values())
        return rankdata([-1.0 if value is None else -value for value in values])

    nodes = rankdata(by("gtvn_dsc_agg") + by("gtvn_f1_agg"))
    return dict(zip(arms, rankdata(by("gtvp_dsc") + nodes).tolist(), strict=True))
