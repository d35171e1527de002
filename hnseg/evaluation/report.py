"""What an evaluation found, as a table for people and JSON for programs."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hnseg.evaluation.intervals import SCORES, TITLES, Interval, Score, score_intervals
from hnseg.files import replacing
from hnseg.metrics import (
    CONNECTIVITIES,
    EMPTY_POLICIES,
    MATCHINGS,
    CaseCounts,
    Connectivity,
    Detections,
    EmptyPolicy,
    Matching,
    Scores,
    SurfaceDistance,
    aggregate,
    case_score_2026,
    f1_agg,
)
from hnseg.terminal import table_console

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Options:
    """What the organisers leave open, see `hnseg.metrics`."""

    empty: EmptyPolicy = "one"
    connectivity: Connectivity = 26
    matching: Matching = "greedy"
    threshold: float = 0.30


@dataclass(frozen=True)
class CaseScore:
    """One patient's scores; `detections` and `distances` go beyond the official ones.

    Attributes:
        case_id: Name of the case.
        center: Its centre, '' where the name tells none.
        counts: The patient's share of the official scores.
        detections: GTVn lesions found, false and missed under every connectivity and matching.
        distances: Surface distances in mm by class name, None where a side is empty.
    """

    case_id: str
    center: str
    counts: CaseCounts
    detections: Mapping[tuple[Connectivity, Matching], Detections]
    distances: Mapping[str, SurfaceDistance | None]

    def to_json(self, empty: EmptyPolicy) -> dict[str, Any]:
        """Plain values: volumes in ml, distances in mm, None where something is not defined."""
        values: dict[str, Any] = {"center": self.center}
        for name, distance in self.distances.items():
            overlap = getattr(self.counts, name)
            values |= {
                f"{name}_dice": overlap.dice,
                f"{name}_ml": overlap.truth / MM3_PER_ML,
                f"{name}_predicted_ml": overlap.prediction / MM3_PER_ML,
                f"{name}_hd95_mm": distance and distance.hd95,
                f"{name}_mean_distance_mm": distance and distance.mean,
            }
        return values | self.counts.lesions._asdict() | {"score_2026": case_score_2026(self.counts, empty)}


@dataclass(frozen=True)
class Report:
    """The scores of a cohort.

    Attributes:
        options: How it was scored.
        cases: One entry a patient, sorted by case.
        extra: Predictions without truth, left out.
    """

    options: Options
    cases: list[CaseScore]
    extra: list[str] = field(default_factory=list)

    @property
    def official(self) -> Scores:
        """The official scores of all cases."""
        return self._aggregate(self.cases)

    @property
    def centers(self) -> dict[str, Scores]:
        """The same for each centre alone, sorted by name; '' holds the cases that name none."""
        names = sorted({case.center for case in self.cases})
        return {name: self._aggregate(c for c in self.cases if c.center == name) for name in names}

    @cached_property
    def intervals(self) -> dict[Score, Interval]:
        """The official scores with their 95 % intervals over patients."""
        return score_intervals(self.cases, empty=self.options.empty)

    @property
    def f1_spread(self) -> dict[tuple[Connectivity, Matching], float]:
        """GTVn F1agg under every connectivity and matching, at the threshold of `options`."""
        return {
            (connectivity, matching): f1_agg(case.detections[connectivity, matching] for case in self.cases)
            for connectivity in CONNECTIVITIES
            for matching in MATCHINGS
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, free of NaN."""
        spread = {f"{matching}_{connectivity}": f1 for (connectivity, matching), f1 in self.f1_spread.items()}
        return {
            "official": {
                **self.official,
                "intervals": {score: asdict(interval) for score, interval in self.intervals.items()},
                "gtvn_f1_agg_by_option": spread,
                "centers": self.centers,
                "options": asdict(self.options),
                "extra_predictions": self.extra,
            },
            "cases": {case.case_id: case.to_json(self.options.empty) for case in self.cases},
        }

    def _aggregate(self, cases: Iterable[CaseScore]) -> Scores:
        return aggregate((case.counts for case in cases), empty=self.options.empty)


def write_json(report: Report, path: Path) -> None:
    """Write `{"official": {…}, "cases": {CASE: {…}}}`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the official scores, per centre too, and what depends on choices the organisers leave open."""
    console = console or table_console()
    official = report.official
    policies = official["gtvp_dsc_by_empty_policy"]
    by_policy = ", ".join(f"{policy} {_number(policies[policy])}" for policy in EMPTY_POLICIES)
    console.print(_score_table(report))
    console.print(_interval_table(report))
    console.print(
        f"GTVp in neither mask: {official['gtvp_both_empty']} of {official['cases']} patients\n"
        f"GTVp DSC by policy for these: {by_policy} (above: {report.options.empty})"
    )
    console.print(_spread_table(report))
    if report.extra:
        names = escape(", ".join(report.extra))
        console.print(f"[yellow]Warning:[/] {len(report.extra)} predictions without truth left out: {names}")


def _score_table(report: Report) -> Table:
    table = Table(title="Official scores (HECKTOR 2025, task 1)")
    table.add_column("")
    for heading in ("Cases", "GTVp DSC", "GTVn DSCagg", "GTVn F1agg", "TP", "FP", "FN"):
        table.add_column(heading, justify="right")

    def add(name: str, scores: Scores, **style: Any) -> None:
        ratios = (_number(scores[key]) for key in ("gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg"))
        table.add_row(
            name, str(scores["cases"]), *ratios, *(str(scores[k]) for k in ("tp", "fp", "fn")), **style
        )

    add("All", report.official, style="bold", end_section=True)
    if any(report.centers):
        for name, scores in report.centers.items():
            add(escape(name) or "(no centre)", scores)
    return table


def _interval_table(report: Report) -> Table:
    table = Table(title="95 % intervals over patients")
    for heading in ("", "Score", "From", "To", "Note"):
        table.add_column(heading, justify="right" if heading in ("Score", "From", "To") else "left")
    for score in SCORES:
        interval = report.intervals[score]
        ends = (_number(number) for number in (interval.value, interval.low, interval.high))
        table.add_row(TITLES[score], *ends, interval.note)
    return table


def _spread_table(report: Report) -> Table:
    table = Table(title=f"GTVn F1agg, IoU threshold {report.options.threshold:g}")
    table.add_column("Connectivity", justify="right")
    for matching in MATCHINGS:
        table.add_column(matching, justify="right")
    for connectivity in CONNECTIVITIES:
        f1 = (_number(report.f1_spread[connectivity, matching]) for matching in MATCHINGS)
        table.add_row(str(connectivity), *f1)
    return table


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"
