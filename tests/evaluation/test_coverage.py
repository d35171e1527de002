"""Intervals and paired test on made-up cohorts, as benchmarks/coverage.py has them, on fewer of them."""

import importlib.util
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
    """Coverage of each score's 95 % interval, and false positives of its test at 5 %."""
    hits = benchmark.simulate(136, COHORTS, true=benchmark.true_scores(), resamples=1000)
    return hits["studentised"].mean(axis=0), hits["test"].mean(axis=0)


def tolerance(share):
    return 3.5 * np.sqrt(share * (1 - share) / COHORTS)


def holds(covered, wrong):
    """Whether what was counted is likely where 95 % are covered, and 5 % found different."""
    return abs(covered - 0.95).max() < tolerance(0.95), abs(wrong - 0.05).max() < tolerance(0.05)


def test_intervals_cover_and_the_test_errs_as_often_as_they_promise(benchmark):
    assert holds(*shares(benchmark)) == (True, True)


def test_narrower_intervals_and_halved_p_values_are_noticed(benchmark, monkeypatch):
    ours, p = benchmark.score_intervals, benchmark.permutation_p
    monkeypatch.setattr(benchmark, "score_intervals", lambda *a, **k: ours(*a, confidence=0.88, **k))
    monkeypatch.setattr(benchmark, "permutation_p", lambda *a: p(*a) / 2)
    assert holds(*shares(benchmark)) == (False, False)
