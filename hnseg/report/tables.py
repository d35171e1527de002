"""The tables of a report as plain cells, each with the value it sorts by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hnseg.evaluation.intervals import SCORES, TITLES, Interval, score_intervals
from hnseg.evaluation.report import MM3_PER_ML, CaseScore
from hnseg.evaluation.slices import NAMES
from hnseg.report.arms import Arm, CaseRow


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        text: As printed.
        order: What it is sorted by, None for its text; missing numbers come last.
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
        caption: What it shows.
        columns: (heading, whether it holds numbers).
        rows: Cells by column.
    """

    key: str
    caption: str
    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]


def score_table(arms: Sequence[Arm]) -> Table:
    """The official scores of every arm with their 95 % intervals."""
    columns = [("Arm", False), ("Cases", True), *((TITLES[score], True) for score in SCORES), ("Note", False)]
    rows = [[Cell(arm.name), *_scores(arm.report.cases)] for arm in arms]
    return Table("scores", "Official scores, each with its 95 % interval", columns, rows)


def center_table(arms: Sequence[Arm]) -> Table:
    """The official scores centre by centre."""
    scores = [(TITLES[score], True) for score in SCORES]
    columns = [("Centre", False), ("Arm", False), ("Cases", True), *scores, ("Note", False)]
    rows = []
    for arm in arms:
        for center in arm.report.centers:
            cases = [case for case in arm.report.cases if case.center == center]
            rows.append([Cell(center or "(none)"), Cell(arm.name), *_scores(cases)])
    return Table("centres", "Official scores by centre", columns, rows)


def case_table(arms: Sequence[Arm], anchors: Mapping[str, str], shown: Arm) -> Table:
    """Every case of every arm: those to look at first, then the worst.

    Args:
        arms: All.
        anchors: Id of a case's element on the page by case.
        shown: The arm whose cases have an element.
    """
    columns = [("Case", False), ("Arm", False), ("Centre", False)]
    for title in NAMES.values():
        columns += [(f"{title} Dice", True), (f"{title} true ml", True), (f"{title} predicted ml", True)]
        columns += [(f"{title} HD95 mm", True)]
    columns += [("GTVn found", True), ("false", True), ("missed", True)]
    columns += [("Least agreement", True), ("Look first", False)]
    rows = [
        [_case_cell(row, anchors, arm is shown), Cell(arm.name), *_case_cells(row)]
        for arm in arms
        for row in arm.rows
    ]
    return Table("cases", "Cases: those to look at first, then from the worst Dice on", columns, rows)


def stored_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """A table of a CSV as it stands."""
    columns = [(name, all(_is_number(row[name]) for row in rows)) for name in rows[0]]
    cells = [
        [
            Cell(text, float(text) if numeric and text else None)
            for text, (_, numeric) in zip(row.values(), columns, strict=True)
        ]
        for row in rows
    ]
    return Table("ablation", "Ablation, as in ablation.csv", columns, cells)


def number(value: float | None, digits: int = 3) -> Cell:
    """A number, or a dash where there is none."""
    return Cell("–") if value is None else Cell(f"{value:.{digits}f}", value)


def _scores(cases: Sequence[CaseScore]) -> list[Cell]:
    intervals = score_intervals(cases)
    notes = sorted({one.note for one in intervals.values() if one.note})
    scores = [_interval(intervals[score]) for score in SCORES]
    return [Cell(str(len(cases)), len(cases)), *scores, Cell("; ".join(notes))]


def _interval(interval: Interval) -> Cell:
    if interval.value is None or interval.low is None or interval.high is None:
        return number(interval.value, 4)
    return Cell(f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})", interval.value)


def _case_cell(row: CaseRow, anchors: Mapping[str, str], shown: bool) -> Cell:
    case_id = row.score.case_id
    return Cell(case_id, link=anchors[case_id] if shown else "")


def _case_cells(row: CaseRow) -> Iterable[Cell]:
    counts = row.score.counts
    yield Cell(row.score.center)
    for name in NAMES:
        overlap, distance = getattr(counts, name), row.score.distances[name]
        yield number(overlap.dice)
        yield number(overlap.truth / MM3_PER_ML, 2)
        yield number(overlap.prediction / MM3_PER_ML, 2)
        yield number(distance and distance.hd95, 1)
    yield from (Cell(str(count), count) for count in counts.lesions)
    yield number(row.agreement, 2)
    yield Cell(row.look_first)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
