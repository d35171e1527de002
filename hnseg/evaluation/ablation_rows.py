"""What several arms scored on the same patients, as rows of plain data.

A row is flat, with None where something is not defined:

    arm, center (None: all patients), cases, rank
    SCORE, SCORE_low, SCORE_high, SCORE_note                                    its interval
    SCORE_difference, SCORE_difference_low, …_high, …_note, SCORE_p, SCORE_p_holm   to the first arm
    gtvp_dsc_least, …_most, gtvn_f1_agg_least, …_most                      over the metric's open choices

Rank, differences and spread are those of all patients; a centre's rows have its scores alone.
"""

from collections.abc import Mapping
from typing import Any

from hnseg.errors import HnsegError
from hnseg.evaluation.comparison import Comparison, borda_ranks, compare, holm
from hnseg.evaluation.intervals import SCORES, Interval, Score, score_intervals
from hnseg.evaluation.report import Report


def ablation_rows(arms: Mapping[str, Report], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a row an arm, then a row an arm and centre.

    Args:
        arms: Reports by name, of the same patients scored with the same options; the first is the baseline.
        seed: Of the resamples.

    Raises:
        HnsegError: No arm, or arms scored on different patients or with different options.
    """
    if not arms:
        raise HnsegError("no arm to compare; name at least one")
    baseline, *others = arms
    for arm in others:
        if arms[arm].options != arms[baseline].options:
            raise HnsegError(f"{arm}: scored with other options than {baseline}; score both alike")
    ranks = borda_ranks({arm: report.official for arm, report in arms.items()})
    empty = arms[baseline].options.empty
    comparisons = {
        arm: compare(arms[arm].cases, arms[baseline].cases, empty=empty, seed=seed) for arm in others
    }
    adjusted = _adjust(comparisons)
    rows = []
    for arm, report in arms.items():
        intervals = score_intervals(report.cases, empty=empty, seed=seed)
        row = _row(arm, None, len(report.cases), intervals) | {"rank": ranks[arm]}
        for score in SCORES:
            comparison = comparisons[arm][score] if arm in comparisons else None
            row |= _difference(score, comparison, adjusted.get((arm, score)))
        rows.append(row | _spread(report))
    return rows + [row for arm, report in arms.items() for row in _center_rows(arm, report, seed)]


def _adjust(comparisons: Mapping[str, Mapping[Score, Comparison]]) -> dict[tuple[str, Score], float]:
    """Each score's p-values adjusted over the arms."""
    return {
        (arm, score): p
        for score in SCORES
        for arm, p in zip(comparisons, holm([c[score].p for c in comparisons.values()]), strict=True)
    }


def _row(arm: str, center: str | None, cases: int, intervals: Mapping[Score, Interval]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "center": center, "cases": cases}
    for score, interval in intervals.items():
        row |= _columns(score, interval)
    return row


def _columns(name: str, interval: Interval) -> dict[str, Any]:
    return {
        name: interval.value,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
        f"{name}_note": interval.note,
    }


def _difference(score: Score, comparison: Comparison | None, p_holm: float | None) -> dict[str, Any]:
    difference = comparison.difference if comparison else Interval(None)
    p = comparison.p if comparison else None
    return _columns(f"{score}_difference", difference) | {f"{score}_p": p, f"{score}_p_holm": p_holm}


def _spread(report: Report) -> dict[str, Any]:
    policies = report.official["gtvp_dsc_by_empty_policy"].values()
    choices = {
        # `skip` alone can leave no patient.
        "gtvp_dsc": [value for value in policies if value is not None],
        "gtvn_f1_agg": list(report.f1_spread.values()),
    }
    return {
        f"{score}_{name}": end(values)
        for score, values in choices.items()
        for name, end in (("least", min), ("most", max))
    }


def _center_rows(arm: str, report: Report, seed: int) -> list[dict[str, Any]]:
    rows = []
    for center in report.centers if any(report.centers) else ():
        cases = [case for case in report.cases if case.center == center]
        intervals = score_intervals(cases, empty=report.options.empty, seed=seed)
        rows.append(_row(arm, center, len(cases), intervals))
    return rows
