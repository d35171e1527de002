"""Intervals and paired test on made-up cohorts, as benchmarks/coverage.py has them, on fewer of them."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COHORTS = 600


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    # Not by its name, which is also that of a package that measures tests.
    spec = importlib.util.spec_from_file_location("benchmark_of_coverage", BENCHMARKS / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "POPULATION", 300_000)
    return module


def shares(benchmark):
    """Coverage of the intervals of scores and of differences, and false positives at 5 %, score by score."""
    hits = benchmark.simulate(136, COHORTS, true=benchmark.true_scores(), resamples=1000)
    return [hits[answer].mean(axis=0) for answer in ("score", "difference", "test")]


def tolerance(share):
    return 3.5 * np.sqrt(share * (1 - share) / COHORTS)


def holds(shares):
    """Whether what was counted is likely where 95 % are covered twice, and 5 % found different."""
    promises = zip(shares, (0.95, 0.95, 0.05), strict=True)
    return [abs(counted - promised).max() < tolerance(promised) for counted, promised in promises]


def test_intervals_cover_and_the_test_errs_as_often_as_they_promise(benchmark):
    assert holds(shares(benchmark)) == [True, True, True]


def test_narrower_intervals_and_halved_p_values_are_noticed(benchmark, monkeypatch):
    def narrower(interval):
        middle, half = (interval.low + interval.high) / 2, (interval.high - interval.low) / 2
        return replace(interval, low=middle - 0.8 * half, high=middle + 0.8 * half)

    ours, theirs = benchmark.score_intervals, benchmark.compare
    monkeypatch.setattr(
        benchmark, "score_intervals", lambda *a, **k: {s: narrower(i) for s, i in ours(*a, **k).items()}
    )
    monkeypatch.setattr(
        benchmark,
        "compare",
        lambda *a, **k: {
            s: c._replace(difference=narrower(c.difference), p=c.p / 2) for s, c in theirs(*a, **k).items()
        },
    )
    assert holds(shares(benchmark)) == [False, False, False]
