"""What several arms scored on the same patients: rows, CSV, and the paper's tables in Markdown and LaTeX."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hnseg.errors import HnsegError
from hnseg.evaluation.score import Report
from hnseg.evaluation.statistics import (
    FEW,
    FEWEST,
    SCORES,
    TITLES,
    Comparison,
    Interval,
    Score,
    borda_ranks,
    compare,
    holm,
    score_intervals,
)
from hnseg.files import replacing, table_console


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


Row = Mapping[str, Any]
"""As `hnseg.evaluation.tables` makes it."""

FOOTNOTE = (
    f"[from, to]* is optimistic: fewer than {FEW} patients. "
    f"There is no interval for fewer than {FEWEST} patients, or where too few of them differ."
)
_SPREADS: Mapping[Score, str] = {
    "gtvp_dsc": "GTVp DSC by policy for empty masks",
    "gtvn_f1_agg": "GTVn F1agg by connectivity and matching",
}
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#"})
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    # After \\ and booktabs' rules, a row that begins with one of these would give them an option.
    | {"[": "{[}", "*": "{*}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "−": "$-$", "–": "--"}
)


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Write `ablation.csv` (all digits), `ablation.md` and `ablation.tex` (four), each whole or not at all.

    Raises:
        HnsegError: The folder cannot be written.
    """
    with replacing(folder / "ablation.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "center": _center(row)} for row in rows)
    for name, text in (("ablation.md", markdown(rows)), ("ablation.tex", latex(rows))):
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables in GitHub's Markdown."""
    parts = []
    for table in _tables(rows):
        lines = [table.headings, ["---"] * len(table.headings)]
        lines += [[cell.translate(_MARKDOWN) for cell in row] for row in table.rows]
        parts.append(f"## {table.title.translate(_MARKDOWN)}\n")
        parts.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join([*parts, FOOTNOTE.translate(_MARKDOWN) + "\n"])


def latex(rows: Sequence[Row]) -> str:
    r"""Return the tables in LaTeX; the document needs `\usepackage{booktabs}`."""
    parts = []
    for table in _tables(rows):
        headings, *body = (
            " & ".join(cell.translate(_LATEX) for cell in row) + r" \\"
            for row in (table.headings, *table.rows)
        )
        parts += [
            r"\begin{table}",
            rf"\caption{{{table.title.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.headings)}}}",
            *(r"\toprule", headings, r"\midrule", *body, r"\bottomrule"),
            *(r"\end{tabular}", r"\end{table}", ""),
        ]
    return "\n".join([*parts, FOOTNOTE.translate(_LATEX), ""])


def print_tables(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the tables to the terminal."""
    console = console or table_console()
    for table in _tables(rows):
        shown = Table(*table.headings, title=escape(table.title))
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
    console.print(escape(FOOTNOTE))


@dataclass(frozen=True)
class _Table:
    """A table as people read it."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def _tables(rows: Sequence[Row]) -> list[_Table]:
    overall = [row for row in rows if row["center"] is None]
    centers = [row for row in rows if row["center"] is not None]
    titles = [TITLES[score] for score in SCORES]
    scores = _Table(
        "Scores with 95 % intervals over patients, and the Borda rank",
        ["Arm", "Cases", *titles, "Rank"],
        [[row["arm"], str(row["cases"]), *_intervals(row), f"{row['rank']:g}"] for row in overall],
    )
    tables = [scores]
    if overall[1:]:
        tables.append(_difference_table(overall))
    if centers:
        body = [[_center(row), row["arm"], str(row["cases"]), *_intervals(row)] for row in centers]
        body.sort(key=lambda cells: cells[0])
        tables.append(_Table("By centre", ["Centre", "Arm", "Cases", *titles], body))
    return [*tables, _spread_table(overall)]


def _difference_table(overall: Sequence[Row]) -> _Table:
    body = [
        [
            row["arm"],
            TITLES[score],
            _interval(row, f"{score}_difference"),
            _number(row[f"{score}_p"]),
            _number(row[f"{score}_p_holm"]),
        ]
        for row in overall[1:]
        for score in SCORES
    ]
    title = f"Paired differences to {overall[0]['arm']} with 95 % intervals"
    return _Table(title, ["Arm", "Score", "Difference", "p", "p (Holm)"], body)


def _spread_table(overall: Sequence[Row]) -> _Table:
    body = [
        [row["arm"], *(f"{_number(row[f'{s}_least'])} to {_number(row[f'{s}_most'])}" for s in _SPREADS)]
        for row in overall
    ]
    return _Table("Spread over what the metric leaves open", ["Arm", *_SPREADS.values()], body)


def _intervals(row: Row) -> list[str]:
    return [_interval(row, score) for score in SCORES]


def _interval(row: Row, name: str) -> str:
    value = _number(row[name])
    if row[f"{name}_low"] is None:
        return value
    mark = "*" if row[f"{name}_note"] else ""
    return f"{value} [{_number(row[f'{name}_low'])}, {_number(row[f'{name}_high'])}]{mark}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}".replace("-", "−")


def _center(row: Row) -> str:
    return "all" if row["center"] is None else row["center"] or "(no centre)"
