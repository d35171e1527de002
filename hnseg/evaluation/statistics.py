"""How certain scores are, and whether arms differ: bootstrap intervals and paired tests over patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from hnseg.metrics.official import SCORES, EmptyPolicy, Score, Scores, aggregate

if TYPE_CHECKING:
    from hnseg.evaluation.score import CaseScore

CONFIDENCE, RESAMPLES = 0.95, 10_000
FEW = 50  # patients below which an interval is too narrow to be trusted
FEWEST = 5  # patients below which there is none: four can be resampled in 35 ways only
_NO_VARIANCE = 1e-12  # of a score, squared: what rounding leaves where patients do not differ

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A score, or a difference of two, with its confidence interval.

    Attributes:
        value: None for a mean over no patient.
        low: Lower end; None where there is no interval.
        high: Upper end, likewise.
        note: Why there is none, or why it is too narrow; '' otherwise.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


def score_intervals(
    cases: Sequence["CaseScore"],
    *,
    empty: EmptyPolicy = "one",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Score, Interval]:
    """Return the official scores of a cohort, each with its interval over patients, see `interval`."""
    scores = aggregate((case.counts for case in cases), empty=empty)
    terms = score_terms(cases, empty)
    weights = resample(len(cases), resamples, seed)
    return {score: interval(scores[score], terms[score][:, None], weights, lowest=0) for score in SCORES}


def score_terms(cases: Sequence["CaseScore"], empty: EmptyPolicy) -> dict[Score, Array]:
    """Return (patients, 2) for each score: what a patient adds to its numerator and its denominator."""
    rows = np.array([case.counts.terms(empty) for case in cases], np.float64).reshape(-1, len(SCORES), 2)
    return {score: rows[:, index] for index, score in enumerate(SCORES)}


def resample(patients: int, resamples: int, seed: int) -> Array:
    """Return (resamples, patients): how often each patient is drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(max(patients, 1), size=(resamples, patients))
    drawn += np.arange(resamples)[:, None] * patients  # each resample counts on a row of its own
    counts = np.bincount(drawn.ravel(), minlength=resamples * patients)
    return counts.reshape(resamples, patients).astype(np.float64)


def interval(value: float | None, terms: Array, weights: Array, *, lowest: float) -> Interval:
    """Return the 95 % studentised (bootstrap-t) interval of a score, or of the difference of two arms.

    SciPy's `bootstrap` has none; `benchmarks/coverage.py` compares the coverage of its BCa interval.

    Args:
        value: The score or difference itself.
        terms: (patients, arms, 2) numerators and denominators; with two arms, the first minus the second.
        weights: (resamples, patients), see `resample`.
        lowest: Least possible value: 0 of a score, -1 of a difference. The greatest is 1.
    """
    if value is None:
        return Interval(value, note="no patient to score")
    # A patient without nodes in either mask adds nothing to the scores of nodes.
    concerned = int(np.count_nonzero(terms.any(axis=(1, 2))))
    if concerned < FEWEST:
        return Interval(value, note=f"no interval: fewer than {FEWEST} patients ({concerned})")
    values, variances = _contrast(terms, weights)
    usable, tail = variances > _NO_VARIANCE, (1 - CONFIDENCE) / 2
    if np.mean(usable) < 1 - tail:  # the others deviate without bound
        return Interval(value, note="no interval: too few patients differ")
    deviations = (values[usable] - value) / np.sqrt(variances[usable])
    (_,), (variance,) = _contrast(terms, np.ones((1, len(terms))))
    upper, lower = np.quantile(deviations, [1 - tail, tail])
    low, high = np.clip(value - np.sqrt(variance) * np.array([upper, lower]), lowest, 1).tolist()
    note = f"interval too narrow: fewer than {FEW} patients ({concerned})" if concerned < FEW else ""
    return Interval(value, low, high, note)


def _contrast(terms: Array, weights: Array) -> tuple[Array, Array]:
    """Return (resamples,) values and their variances for weighted patients.

    A ratio n/d of sums has the influence (n_i - n/d · d_i) / d of each patient, which is the gradient
    (1/d, -n/d²) times the patient's terms; its variance is their sum of squares.
    """
    patients, arms, _ = terms.shape
    columns = terms.reshape(patients, -1)
    sums = (weights @ columns).reshape(-1, arms, 2)
    scores, signs = ratio(sums), np.array([1.0, -1.0])[:arms]
    inverse = np.divide(1, sums[..., 1], out=np.zeros_like(scores), where=sums[..., 1] > 0)
    gradient = (signs * inverse)[..., None] * np.stack([np.ones_like(scores), -scores], axis=-1)
    gradient = gradient.reshape(-1, 2 * arms)
    products = np.einsum("pi,pj->pij", columns, columns).reshape(patients, -1)
    moments = (weights @ products).reshape(-1, 2 * arms, 2 * arms)
    return scores @ signs, np.einsum("ri,rij,rj->r", gradient, moments, gradient)


def ratio(sums: Array) -> Array:
    """Return (…) scores from (…, 2) sums; as in `metrics.official.ratio_of_sums`, 0 / 0 is 1."""
    numerator, denominator = sums[..., 0], sums[..., 1]
    return np.divide(numerator, denominator, out=np.ones_like(numerator), where=denominator > 0)


_ROUNDING = 1e-10  # differences of two permutations closer than this are equal


class Comparison(NamedTuple):
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
    """Compare an arm with the baseline on the same patients in the same order, by each official score.

    Patients are resampled with both arms for the interval, arms exchanged within patients for the p-value.
    """
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


def permutation_p(terms: Array, permutations: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value that the two arms are exchangeable within each patient.

    The scores are recomputed after exchanging the arms' terms in every subset of patients, or in
    `permutations` random ones where there are more subsets; then the observed difference counts as one
    (Phipson & Smyth 2010), so that p is never 0. As `scipy.stats.permutation_test` with
    `permutation_type="samples"`, which would score the cohort anew in Python for each exchange.

    Args:
        terms: (patients, 2 arms, 2) numerators and denominators.
        permutations: Most subsets to look at.
        seed: Of the random subsets.
    """
    gain = terms[:, 1] - terms[:, 0]
    gain = gain[gain.any(axis=1)]  # elsewhere an exchange changes nothing
    patients = len(gain)
    exact = 2**patients <= permutations
    if exact:
        exchange = np.arange(2**patients)[:, None] >> np.arange(patients) & 1
    else:
        exchange = np.random.default_rng(seed).integers(2, size=(permutations, patients))
    first, second = terms.sum(axis=0)
    moved = exchange.astype(np.float64) @ gain
    differences = np.abs(ratio(first + moved) - ratio(second - moved))
    extreme = np.count_nonzero(differences >= abs(ratio(first) - ratio(second)) - _ROUNDING)
    return float(extreme / len(exchange) if exact else (extreme + 1) / (len(exchange) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests (Holm 1979), which SciPy does not offer."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def borda_ranks(arms: Mapping[str, Scores]) -> dict[str, float]:
    """Rank arms as the challenge does; 1 is best, ties share their mean rank.

    A Borda count of the rank by GTVp DSC and the rank for GTVn, which in turn is by a Borda count of the
    ranks by GTVn DSCagg and GTVn F1agg (HECKTOR 2025, task 1).

    Args:
        arms: Official scores by name; a mean over no patient counts as 1, as the aggregated scores do.
    """

    def by(score: Score) -> NDArray[np.float64]:
        values = (scores[score] for scores in arms.values())
        return rankdata([-1.0 if value is None else -value for value in values])

    nodes = rankdata(by("gtvn_dsc_agg") + by("gtvn_f1_agg"))
    return dict(zip(arms, rankdata(by("gtvp_dsc") + nodes).tolist(), strict=True))
