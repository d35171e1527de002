"""What several arms scored on the same patients: rows, CSV, and the paper's tables in Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.console import Console

from hnseg.errors import HnsegError
from hnseg.evaluation.score import CohortScore
from hnseg.evaluation.statistics import FEW, FEWEST, Comparison, Interval, borda_ranks, compare, holm
from hnseg.files import print_table, replacing, table_console, write_table
from hnseg.metrics.official import SCORES, TITLES, Score

ABLATION = "ablation.json"
Row = Mapping[str, Any]

FOOTNOTE = (
    f"[from, to]* is optimistic: fewer than {FEW} patients. "
    f"There is no interval for fewer than {FEWEST} patients, or where too few of them differ."
)
_SPREADS: Mapping[Score, str] = {
    "gtvp_dsc": "GTVp DSC by policy for empty masks",
    "gtvn_f1_agg": "GTVn F1agg by connectivity and matching",
}


def ablation_rows(arms: Mapping[str, CohortScore]) -> list[dict[str, Any]]:
    """Return a row an arm, then a row an arm and centre.

    Args:
        arms: Scores by arm, of the same patients with the same options; the first is the baseline.

    Raises:
        HnsegError: Arms scored on different patients or with different options.
    """
    baseline, *others = arms
    for arm in others:
        if arms[arm].options != arms[baseline].options:
            raise HnsegError(f"{arm}: scored with other options than {baseline}; score both alike")
    ranks = borda_ranks({arm: cohort.official for arm, cohort in arms.items()})
    empty = arms[baseline].options.empty
    comparisons = {arm: compare(arms[arm].cases, arms[baseline].cases, empty=empty) for arm in others}
    adjusted = {score: holm([c[score].p for c in comparisons.values()]) for score in SCORES}
    rows = []
    for arm, cohort in arms.items():
        row = _score_columns(arm, None, cohort) | {"rank": ranks[arm]}
        for score in SCORES:
            p_holm = dict(zip(comparisons, adjusted[score], strict=True)).get(arm)
            row |= _difference_columns(score, comparisons.get(arm, {}).get(score), p_holm)
        rows.append(row | _spread_columns(cohort))
    for arm, cohort in arms.items():
        if any(cohort.centers):
            rows += [_score_columns(arm, name, center) for name, center in cohort.centers.items()]
    return rows


def _score_columns(arm: str, center: str | None, cohort: CohortScore) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "center": center, "cases": len(cohort.cases)}
    for score, interval in cohort.intervals.items():
        row |= _interval_columns(score, interval)
    return row


def _interval_columns(name: str, interval: Interval) -> dict[str, Any]:
    return {
        name: interval.value,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
        f"{name}_note": interval.note,
    }


def _difference_columns(score: Score, comparison: Comparison | None, p_holm: float | None) -> dict[str, Any]:
    difference, p = (comparison.difference, comparison.p) if comparison else (Interval(None), None)
    return _interval_columns(f"{score}_difference", difference) | {
        f"{score}_p": p,
        f"{score}_p_holm": p_holm,
    }


def _spread_columns(cohort: CohortScore) -> dict[str, Any]:
    policies = cohort.official["gtvp_dsc_by_empty_policy"].values()
    choices = {
        "gtvp_dsc": [score for score in policies if score is not None],  # `skip` can leave no patient
        "gtvn_f1_agg": list(cohort.f1_spread.values()),
    }
    return {
        f"{score}_{name}": end(values)
        for score, values in choices.items()
        for name, end in (("least", min), ("most", max))
    }


@dataclass(frozen=True)
class Table:
    """A table as people read it."""

    title: str
    headings: list[str]
    rows: list[list[str]]


def make_tables(rows: Sequence[Row]) -> list[Table]:
    """Lay out the rows of `ablation_rows` as tables of four digits."""
    overall = [row for row in rows if row["center"] is None]
    centers = sorted((row for row in rows if row["center"] is not None), key=_center)
    titles = list(TITLES.values())

    def intervals(row: Row) -> list[str]:
        return [_interval(row, score) for score in SCORES]

    scores = [[row["arm"], str(row["cases"]), *intervals(row), f"{row['rank']:g}"] for row in overall]
    differences = [
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
    by_center = [[_center(row), row["arm"], str(row["cases"]), *intervals(row)] for row in centers]
    spreads = [
        [row["arm"], *(f"{_number(row[f'{s}_least'])} to {_number(row[f'{s}_most'])}" for s in _SPREADS)]
        for row in overall
    ]
    tables = [
        Table(
            "Scores with 95 % intervals over patients, and the Borda rank",
            ["Arm", "Cases", *titles, "Rank"],
            scores,
        ),
        Table(
            f"Paired differences to {overall[0]['arm']} with 95 % intervals",
            ["Arm", "Score", "Difference", "p", "p (Holm)"],
            differences,
        ),
        Table("By centre", ["Centre", "Arm", "Cases", *titles], by_center),
        Table("Spread over what the metric leaves open", ["Arm", *_SPREADS.values()], spreads),
    ]
    return [table for table in tables if table.rows]


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


_ESCAPES = {
    "markdown": {character: f"\\{character}" for character in "\\`*_[]<>|#"},
    "latex": {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    # After \\ and booktabs' rules, [ and * at the start of a row would be an option of the rule.
    | {"[": "{[}", "*": "{*}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "−": "$-$", "–": "--"},
}
_MARKDOWN = """\
{% for table in tables %}
## {{ table.title | escaped }}

| {{ table.headings | join(" | ") }} |
| {{ (["---"] * table.headings | length) | join(" | ") }} |
{% for row in table.rows %}
| {{ row | map("escaped") | join(" | ") }} |
{% endfor %}

{% endfor %}
{{ footnote | escaped }}
"""
_LATEX = r"""
{%- for table in tables %}
\begin{table}
\caption{ {{- table.title | escaped -}} }
\begin{tabular}{ {{- "l" * table.headings | length -}} }
\toprule
{{ table.headings | map("escaped") | join(" & ") }} \\
\midrule
{% for row in table.rows %}
{{ row | map("escaped") | join(" & ") }} \\
{% endfor %}
\bottomrule
\end{tabular}
\end{table}

{% endfor %}
{{ footnote | escaped }}
"""


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables in GitHub's Markdown."""
    return _render(_MARKDOWN, "markdown", rows)


def latex(rows: Sequence[Row]) -> str:
    r"""Return the tables in LaTeX; the document needs `\usepackage{booktabs}`."""
    return _render(_LATEX, "latex", rows)


def _render(template: str, language: str, rows: Sequence[Row]) -> str:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    escapes = str.maketrans(_ESCAPES[language])
    environment.filters["escaped"] = lambda text: text.translate(escapes)
    return environment.from_string(template).render(tables=make_tables(rows), footnote=FOOTNOTE)


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Write `ablation.csv` (all digits), `ablation.md` and `ablation.tex` (four), each whole or not at all.

    Raises:
        HnsegError: The folder cannot be written.
    """
    write_table(folder / "ablation.csv", list(rows[0]), [{**row, "center": _center(row)} for row in rows])
    for name, text in (("ablation.md", markdown(rows)), ("ablation.tex", latex(rows))):
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def print_tables(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the tables to the terminal."""
    console = console or table_console()
    for table in make_tables(rows):
        print_table(table.headings, table.rows, table.title, console)
    console.print(FOOTNOTE, markup=False)
