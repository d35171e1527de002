"""Do the intervals hold what they promise, and does the paired test? Simulated cohorts tell.

    python benchmarks/coverage.py               2,000 cohorts of 136 and of 400 patients: minutes on one core
    python benchmarks/coverage.py --workers 2   the same on two

Coverage: how often a 95 % interval holds the score of the population that the cohort was drawn from, for
the studentised intervals of hnseg and for SciPy's BCa beside them (`--bca`, slower); and how often that of
the difference of two arms of which neither is better holds 0. False positives: how often the paired test
finds a difference between these at 5 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from cohorts import draw_arms
from numpy.typing import NDArray
from scipy import stats

from hnseg.evaluation.statistics import Interval, compare, ratio, score_intervals, score_terms
from hnseg.metrics.official import SCORES, TITLES

POPULATION = 1_000_000  # patients: its scores are the true ones, to a hundredth of an interval's width
BATCH = 50  # cohorts
ANSWERS = ("score", "BCa", "difference", "test")

Hits = NDArray[np.bool_]


def true_scores(seed: int = 0) -> NDArray[np.float64]:
    """(4,) scores of the population, in the order of `SCORES`."""
    (population,) = draw_arms(np.random.default_rng([seed, 0]), POPULATION)
    return population.scores()


def simulate(
    patients: int,
    cohorts: int,
    *,
    true: NDArray[np.float64],
    resamples: int = 2000,
    bca: bool = False,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Hits]:
    """Draw cohorts with two exchangeable arms and ask hnseg about them.

    Args:
        patients: Of each cohort.
        cohorts: How many.
        true: What the intervals should hold, see `true_scores`.
        resamples: Of each interval, and permutations of each test.
        bca: Whether to ask SciPy for its BCa intervals as well.
        seed: Of the cohorts.
        workers: Processes.

    Returns:
        (cohorts, 4) whether the first arm's intervals hold the true scores (`score`, `BCa`), whether those of
        the arms' differences hold 0 (`difference`), and whether the test finds one at 5 % (`test`).
    """
    seeds = [np.random.SeedSequence([seed, patients, cohort]) for cohort in range(cohorts)]
    ask = partial(_ask, patients=patients, true=true, resamples=resamples, bca=bca)
    if workers == 1:
        answers = [ask(one) for one in seeds]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            answers = list(pool.map(ask, seeds, chunksize=BATCH))
    return dict(zip(ANSWERS, np.array(answers).transpose(1, 0, 2), strict=True))


def _ask(
    seed: np.random.SeedSequence, *, patients: int, true: NDArray[np.float64], resamples: int, bca: bool
) -> Hits:
    rng = np.random.default_rng(seed)
    arms = draw_arms(rng, patients, arms=2)
    draw = int(rng.integers(2**32))
    first, second = (arm.cases() for arm in arms)
    intervals = score_intervals(first, resamples=resamples, seed=draw)
    comparisons = compare(first, second, resamples=resamples, seed=draw)
    ours = _ends(intervals[score] for score in SCORES)
    differences = _ends(comparisons[score].difference for score in SCORES)
    theirs = _bca(score_terms(first, "one").values(), resamples, draw) if bca else np.full_like(ours, np.nan)
    found = np.array([comparisons[score].p <= 0.05 for score in SCORES])
    return np.stack([_holds(ours, true), _holds(theirs, true), _holds(differences, 0), found])


def _ends(intervals: Iterable[Interval]) -> NDArray[np.float64]:
    return np.array([(interval.low, interval.high) for interval in intervals], dtype=np.float64)


def _holds(ends: NDArray[np.float64], true: NDArray[np.float64] | float) -> Hits:
    return (ends[:, 0] <= true) & (true <= ends[:, 1])


def _bca(terms: Iterable[NDArray[np.float64]], resamples: int, seed: int) -> NDArray[np.float64]:
    def score(
        numerator: NDArray[np.float64], denominator: NDArray[np.float64], axis: int
    ) -> NDArray[np.float64]:
        return ratio(np.stack([numerator.sum(axis=axis), denominator.sum(axis=axis)], axis=-1))

    settings = {"paired": True, "vectorized": True, "n_resamples": resamples, "method": "BCa"}
    return np.array(
        [stats.bootstrap(tuple(t.T), score, rng=seed, **settings).confidence_interval for t in terms]
    )


def main() -> None:
    """Print a table in Markdown, cohort sizes one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, nargs="+", default=[136, 400], help="of a cohort")
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000, help="of an interval; permutations of a test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--bca", action="store_true", help="SciPy's BCa intervals as well")
    args = parser.parse_args()

    true = true_scores(args.seed)
    print("| patients | score | true | covered | by BCa | difference covered | false positives |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for patients in args.patients:
        found = simulate(
            patients,
            args.cohorts,
            true=true,
            resamples=args.resamples,
            bca=args.bca,
            seed=args.seed,
            workers=args.workers,
        )
        shares = {answer: [f"{share:.1%}" for share in hits.mean(axis=0)] for answer, hits in found.items()}
        if not args.bca:
            shares["BCa"] = ["–"] * len(SCORES)
        for i, score in enumerate(SCORES):
            columns = " | ".join(shares[answer][i] for answer in ANSWERS)
            print(f"| {patients} | {TITLES[score]} | {true[i]:.4f} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
