"""Rows of an ablation as CSV, and as the paper's Tables 5 to 7, with intervals, in Markdown and LaTeX."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hnseg.evaluation.intervals import FEW, FEWEST, SCORES, TITLES, Score
from hnseg.files import replacing
from hnseg.terminal import table_console

Row = Mapping[str, Any]
"""As `hnseg.evaluation.ablation_rows` makes it."""

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
