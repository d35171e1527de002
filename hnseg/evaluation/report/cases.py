"""What the page says of each case: its scores, its lesions, and why a reader should review it first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnseg.evaluation.score import MM3_PER_ML, CaseScore, CohortScore
from hnseg.imaging.case import Case
from hnseg.inference.lesions import Lesion
from hnseg.inference.records import read_records
from hnseg.metrics.official import CLASSES

Columns = list[tuple[str, list[str]]]  # headings in groups


@dataclass(frozen=True)
class CaseRow:
    """A case as a table shows it.

    Attributes:
        score: None without ground truth.
        reasons: Why a reader should review it first.
        lesions: Of its record.
    """

    case_id: str
    centre: str
    score: CaseScore | None
    reasons: Sequence[str]
    lesions: Sequence[Lesion]

    @property
    def dice(self) -> float:
        """Mean of the Dice of the classes that either side holds; 1 where neither does or none is known."""
        overlaps = self.score.counts.overlaps.values() if self.score else ()
        known = [overlap.dice for overlap in overlaps if overlap.dice is not None]
        return sum(known) / len(known) if known else 1.0

    @property
    def agreement(self) -> float | None:
        """Share of members that agree, 0 to 1, of the lesion where it is least; None if unknown."""
        known = [lesion.agreement for lesion in self.lesions if lesion.agreement is not None]
        return min(known, default=None)

    def volumes(self, name: str) -> list[float]:
        """Of the lesions of a class, ml."""
        return [lesion.volume_ml for lesion in self.lesions if lesion.name == name]

    @property
    def summary(self) -> str:
        """A phrase for the case's heading."""
        if self.score:
            dice = self.score.counts.overlaps.items()
            return " · ".join(f"{name} Dice {_number(overlap.dice, 2)}" for name, overlap in dice)
        volumes = {name: self.volumes(name) for name in CLASSES}
        return " · ".join(f"{len(ml)} {name}, {sum(ml):.1f} ml" for name, ml in volumes.items())

    @property
    def cells(self) -> list[str]:
        """What `columns` names between the case's centre and its reasons, as text."""
        if self.score is None:
            volumes = [self.volumes(name) for name in CLASSES]
            cells = [text for ml in volumes for text in (str(len(ml)), _number(sum(ml), 2))]
            return [*cells, _number(self.agreement, 2)]
        cells = []
        for name, overlap in self.score.counts.overlaps.items():
            distance = self.score.distances[name]
            cells += [
                _number(overlap.dice, 3),
                _number(overlap.truth / MM3_PER_ML, 2),
                _number(overlap.prediction / MM3_PER_ML, 2),
                _number(distance and distance.hd95, 1),
            ]
        return [*cells, *map(str, self.score.counts.lesions), _number(self.agreement, 2)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def columns(*, scored: bool, several: bool) -> Columns:
    """The headings of the table of cases, with scores and with the arm where there are several."""
    measures = ["Dice", "true ml", "predicted ml", "HD95 mm"] if scored else ["lesions", "ml"]
    groups: Columns = [("", ["Case", *(["Arm"] if several else []), "Centre"])]
    groups += [(name, measures) for name in CLASSES]
    groups += [("GTVn nodes", ["found", "false", "missed"])] if scored else []
    return [*groups, ("", ["Least agreement", "Review first"])]


def scored_rows(cohort: CohortScore, folder: Path) -> list[CaseRow]:
    """The cases with what their records say: those to review first, each group from the worst Dice on."""
    return _rows({score.case_id: (score.center, score) for score in cohort.cases}, folder)


def unscored_rows(cases: Sequence[Case], folder: Path) -> list[CaseRow]:
    """The cases with what their records say, those to review first."""
    return _rows({case.case_id: (case.center, None) for case in cases}, folder)


def _rows(known: Mapping[str, tuple[str, CaseScore | None]], folder: Path) -> list[CaseRow]:
    records = read_records(folder)
    rows = []
    for case_id, (centre, score) in known.items():
        record = records.get(case_id)
        reasons, lesions = (record.review_reasons, record.lesions) if record else ([], [])
        rows.append(CaseRow(case_id, centre, score, reasons, lesions))
    return sorted(rows, key=lambda row: (not row.reasons, row.dice, row.case_id))


def tiles(rows: Sequence[CaseRow]) -> list[tuple[str, str, str]]:
    """Figures of a cohort without ground truth: (name, figure, what it is of)."""
    review = sum(bool(row.reasons) for row in rows)
    figures = [("Cases", str(len(rows)), f"{review} to review first")]
    for name in CLASSES:
        found = [ml for row in rows for ml in row.volumes(name)]
        cases = sum(bool(row.volumes(name)) for row in rows)
        figures.append((f"{name} lesions", str(len(found)), f"in {cases} cases, {sum(found):.1f} ml in all"))
    return figures
