"""Tables of scores, of one cohort or of several arms: for the terminal, and as CSV, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from hnseg.errors import few
from hnseg.evaluation.score import CohortScore
from hnseg.evaluation.statistics import FEW, FEWEST, Interval, borda_ranks, compare, holm
from hnseg.files import print_table, replacing, table_console, write_table
from hnseg.metrics.lesions import CONNECTIVITIES, MATCHINGS
from hnseg.metrics.official import EMPTY_POLICIES, SCORES, TITLES, Score

ABLATION = "ablation.json"
Row = Mapping[str, Any]

FOOTNOTE = (
    f"[from, to]*: the interval is too narrow, of fewer than {FEW} patients. "
    f"There is no interval for fewer than {FEWEST} patients, or where too few of them differ."
)
_SPREADS: Mapping[Score, str] = {
    "gtvp_dsc": "GTVp DSC by policy for empty masks",
    "gtvn_f1_agg": "GTVn F1agg by connectivity and matching",
}


class Table(NamedTuple):
    """A table as people read it; the first cell of a row names it."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def print(self, console: Console) -> None:
        """Print it to the terminal."""
        print_table(self.headings, self.rows, self.title, console)


def print_scores(cohort: CohortScore, console: Console | None = None) -> None:
    """Print the official scores, per centre too, and what depends on choices the organisers leave open."""
    console = console or table_console()
    groups = {"All": cohort}
    if any(cohort.centers):
        groups |= {name or "(no centre)": center for name, center in cohort.centers.items()}
    official, spread = cohort.official, cohort.f1_spread
    rows = [
        [name, str(len(group.cases)), *map(_interval, group.intervals.values())]
        + [str(group.official[key]) for key in ("tp", "fp", "fn")]
        for name, group in groups.items()
    ]
    headings = ["", "Cases", *TITLES.values(), "TP", "FP", "FN"]
    Table("Official scores with 95 % intervals over patients", headings, rows).print(console)
    console.print(FOOTNOTE, markup=False)
    policies = official["gtvp_dsc_by_empty_policy"]
    by_policy = ", ".join(f"{policy} {_number(policies[policy])}" for policy in EMPTY_POLICIES)
    console.print(
        f"GTVp in neither mask: {official['gtvp_both_empty']} of {len(cohort.cases)} patients\n"
        f"GTVp DSC by policy for these: {by_policy} (above: {cohort.options.empty})"
    )
    rows = [[str(c), *(_number(spread[c, matching]) for matching in MATCHINGS)] for c in CONNECTIVITIES]
    title = f"GTVn F1agg, IoU threshold {cohort.options.threshold:g}"
    Table(title, ["Connectivity", *MATCHINGS], rows).print(console)
    if cohort.missing:
        text = f"Warning: left out without a prediction: {len(cohort.missing)} ({few(cohort.missing)})"
        console.print(text, style="yellow", markup=False)
    if cohort.extra:
        names = ", ".join(cohort.extra)
        warning = f"Warning: {len(cohort.extra)} predictions without ground truth left out: {names}"
        console.print(warning, style="yellow", markup=False)


def ablation_rows(arms: Mapping[str, CohortScore]) -> list[dict[str, Any]]:
    """Return a row an arm, then a row an arm and centre.

    Args:
        arms: Scores by arm, of the same patients with the same options; the first is the baseline.
    """
    baseline, *others = arms
    ranks = borda_ranks({arm: cohort.official for arm, cohort in arms.items()})
    empty = arms[baseline].options.empty
    comparisons = {arm: compare(arms[arm].cases, arms[baseline].cases, empty=empty) for arm in others}
    adjusted = {score: holm([c[score].p for c in comparisons.values()]) for score in SCORES}
    rows = []
    for arm, cohort in arms.items():
        row = _score_columns(arm, None, cohort) | {"rank": ranks[arm]}
        for score in SCORES:
            difference, p, p_holm = Interval(None), None, None
            if arm != baseline:
                difference, p = comparisons[arm][score]
                p_holm = adjusted[score][others.index(arm)]
            row |= _interval_columns(f"{score}_difference", difference)
            row |= {f"{score}_p": p, f"{score}_p_holm": p_holm}
        policies = cohort.official["gtvp_dsc_by_empty_policy"].values()
        dsc = [score for score in policies if score is not None]  # `skip` can leave no patient
        f1 = cohort.f1_spread.values()
        row |= {"gtvp_dsc_least": min(dsc), "gtvp_dsc_most": max(dsc)}
        rows.append(row | {"gtvn_f1_agg_least": min(f1), "gtvn_f1_agg_most": max(f1)})
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


def make_tables(rows: Sequence[Row]) -> list[Table]:
    """Lay out the rows of `ablation_rows` as tables of four digits."""
    overall = [row for row in rows if row["center"] is None]
    centers = sorted((row for row in rows if row["center"] is not None), key=_center)
    titles = list(TITLES.values())

    def interval(row: Row, name: str) -> str:
        return _interval(Interval(*(row[f"{name}{part}"] for part in ("", "_low", "_high", "_note"))))

    def scores(row: Row) -> list[str]:
        return [row["arm"], str(row["cases"]), *(interval(row, score) for score in SCORES)]

    differences = [
        [row["arm"], TITLES[score], interval(row, f"{score}_difference")]
        + [_number(row[f"{score}_{p}"]) for p in ("p", "p_holm")]
        for row in overall[1:]
        for score in SCORES
    ]
    spreads = [
        [row["arm"], *(f"{_number(row[f'{s}_least'])} to {_number(row[f'{s}_most'])}" for s in _SPREADS)]
        for row in overall
    ]
    tables = [
        Table(
            "Scores with 95 % intervals over patients, and the Borda rank",
            ["Arm", "Cases", *titles, "Rank"],
            [[*scores(row), f"{row['rank']:g}"] for row in overall],
        ),
        Table(
            f"Paired differences to {overall[0]['arm']} with 95 % intervals",
            ["Arm", "Score", "Difference", "p", "p (Holm)"],
            differences,
        ),
        Table(
            "By centre",
            ["Centre", "Arm", "Cases", *titles],
            [[_center(row), *scores(row)] for row in centers],
        ),
        Table("Spread over what the metric leaves open", ["Arm", *_SPREADS.values()], spreads),
    ]
    return [table for table in tables if table.rows]


def _interval(interval: Interval) -> str:
    if interval.low is None:
        return _number(interval.value)
    mark = "*" if interval.note else ""
    return f"{_number(interval.value)} [{_number(interval.low)}, {_number(interval.high)}]{mark}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}".replace("-", "−")


def _center(row: Row) -> str:
    return "all" if row["center"] is None else row["center"] or "(no centre)"


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables in GitHub's Markdown."""
    lines = []
    for table in make_tables(rows):
        cells = [table.headings, ["---"] * len(table.headings), *table.rows]
        lines += [f"## {table.title}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    return "\n".join([*lines, FOOTNOTE, ""]).replace("*", r"\*")


_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"−": "$-$", "–": "--"}
)


def latex(rows: Sequence[Row]) -> str:
    r"""Return the tables in LaTeX; the document needs `\usepackage{booktabs}`."""
    lines = []
    for title, headings, body in make_tables(rows):
        escaped = [[cell.translate(_LATEX) for cell in row] for row in [headings, *body]]
        head, *others = [rf"{' & '.join(row)} \\" for row in escaped]
        lines += [
            r"\begin{table}",
            rf"\caption{{{title.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{{'l' * len(headings)}}}",
            *(r"\toprule", head, r"\midrule", *others, r"\bottomrule"),
            *(r"\end{tabular}", r"\end{table}", ""),
        ]
    return "\n".join([*lines, FOOTNOTE.translate(_LATEX), ""])


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Write `ablation.csv` (all digits), `ablation.md` and `ablation.tex` (four), each whole or not at all.

    Raises:
        HnsegError: The folder cannot be written.
    """
    write_table(folder / "ablation.csv", list(rows[0]), [{**row, "center": _center(row)} for row in rows])
    for name, text in (("ablation.md", markdown(rows)), ("ablation.tex", latex(rows))):
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def print_tables(rows: Sequence[Row]) -> None:
    """Print the tables to the terminal."""
    console = table_console()
    for table in make_tables(rows):
        table.print(console)
    console.print(FOOTNOTE, markup=False)
