"""The tables of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hnseg.evaluation.report.cases import Arm, CaseRow
from hnseg.evaluation.score import MM3_PER_ML, CohortScore
from hnseg.evaluation.statistics import Interval
from hnseg.metrics.official import CLASSES, TITLES


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        text: As printed.
        order: What numbers are sorted by; None sorts last, and means text in a column of text.
        link: Id of the element on the page that it leads to; '' for none.
    """

    text: str
    order: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table: the first cell of a row names the row.

    Attributes:
        key: Its id on the page.
        caption: What it shows; up to the first comma or colon, its heading.
        columns: Whether it holds numbers, by heading.
        rows: Cells by column.
    """

    key: str
    caption: str
    columns: Mapping[str, bool]
    rows: Sequence[Sequence[Cell]]

    @property
    def heading(self) -> str:
        """The caption's first words."""
        return self.caption.partition(",")[0].partition(":")[0]


_SCORES = {"Cases": True, **dict.fromkeys(TITLES.values(), True), "Note": False}


def score_table(arms: Sequence[Arm]) -> Table:
    """The official scores of every arm with their 95 % intervals."""
    rows = [[Cell(arm.name), *_score_cells(arm.cohort)] for arm in arms]
    return Table("scores", "Official scores, each with its 95 % interval", {"Arm": False, **_SCORES}, rows)


def center_table(arms: Sequence[Arm]) -> Table:
    """The official scores centre by centre."""
    rows = [
        [Cell(name or "(none)"), Cell(arm.name), *_score_cells(center)]
        for arm in arms
        for name, center in arm.cohort.centers.items()
    ]
    return Table("centres", "Official scores by centre", {"Centre": False, "Arm": False, **_SCORES}, rows)


def case_table(arms: Sequence[Arm], shown: Arm) -> Table:
    """Every case of every arm: those to review first, then the worst; the cases of `shown` are links."""
    columns = {"Case": False, "Arm": False, "Centre": False}
    for name in CLASSES:
        measures = "Dice", "true ml", "predicted ml", "HD95 mm"
        columns |= {f"{name} {measure}": True for measure in measures}
    columns |= dict.fromkeys(("GTVn found", "false", "missed", "Least agreement"), True)
    columns |= {"Review reason": False}
    rows = [
        [
            Cell(row.score.case_id, link=f"case-{number}" if arm is shown else ""),
            Cell(arm.name),
            *_case_cells(row),
        ]
        for arm in arms
        for number, row in enumerate(arm.rows, start=1)
    ]
    return Table("cases", "Cases: those to review first, then from the worst Dice on", columns, rows)


def stored_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """A table of a CSV as it stands."""
    columns = {name: all(_is_number(row[name]) for row in rows) for name in rows[0]}
    cells = [
        [Cell(text, float(text) if columns[name] and text else None) for name, text in row.items()]
        for row in rows
    ]
    return Table("ablation", "Ablation, as in ablation.csv", columns, cells)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _score_cells(cohort: CohortScore) -> list[Cell]:
    intervals = cohort.intervals.values()
    notes = sorted({interval.note for interval in intervals if interval.note})
    scores = [_interval(interval) for interval in intervals]
    return [Cell(str(len(cohort.cases)), len(cohort.cases)), *scores, Cell("; ".join(notes))]


def _interval(interval: Interval) -> Cell:
    if interval.value is None or interval.low is None or interval.high is None:
        return _number(interval.value, 4)
    return Cell(f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})", interval.value)


def _case_cells(row: CaseRow) -> list[Cell]:
    cells = [Cell(row.score.center)]
    for name, overlap in row.score.counts.overlaps.items():
        distance = row.score.distances[name]
        cells += [
            _number(overlap.dice),
            _number(overlap.truth / MM3_PER_ML, 2),
            _number(overlap.prediction / MM3_PER_ML, 2),
            _number(distance and distance.hd95, 1),
        ]
    cells += [Cell(str(count), count) for count in row.score.counts.lesions]
    return [*cells, _number(row.agreement, 2), Cell(row.review_reason)]


def _number(value: float | None, digits: int = 3) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.{digits}f}", value)
