"""What a report is made of: a folder of `infer.py` with the truth beside it, or one of several arms."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnseg.errors import HnsegError
from hnseg.evaluation.report import CaseScore, Report
from hnseg.evaluation.score import evaluate
from hnseg.tables import read_table

ABLATION = "ablation.json"  # OUT/ablation.json: {"arms": […], "data": ROOT, …}, beside OUT/ARM
CASES, LESIONS = "cases.csv", "lesions.csv"  # as infer.py leaves them
_ANEW = "write it anew with infer.py"


@dataclass(frozen=True)
class CaseRow:
    """A case as a table shows it.

    Attributes:
        score: Its scores.
        look_first: Why a reader should begin with it, '' where nothing speaks for it.
        agreement: Of the lesion on which fewest members agree, 0 to 1; None where that is not known.
    """

    score: CaseScore
    look_first: str
    agreement: float | None

    @property
    def dice(self) -> float:
        """Mean of the Dice of the classes that either side holds; 1 where neither holds any."""
        both = (self.score.counts.gtvp.dice, self.score.counts.gtvn.dice)
        known = [dice for dice in both if dice is not None]
        return sum(known) / len(known) if known else 1.0


@dataclass(frozen=True)
class Arm:
    """The masks of one arm and their scores.

    Attributes:
        name: The arm's, or the folder's where there is but one.
        folder: CASE.nii.gz, cases.csv, lesions.csv, maps/.
        report: The scores.
        rows: One a case: what to look at first comes first, then the worst.
    """

    name: str
    folder: Path
    report: Report
    rows: list[CaseRow]


def find_arms(out: Path, truth: Path | None) -> tuple[dict[str, Path], Path]:
    """The arms of a folder.

    Args:
        out: What infer.py left, or a folder of arms with their ablation.json.
        truth: The cohort; by default the one that the ablation names.

    Returns:
        Each arm's folder by name, in the ablation's order, and the cohort.

    Raises:
        HnsegError: No such folder, a truth that is not named, or a damaged ablation.json.
    """
    if not out.is_dir():
        raise HnsegError(f"{out}: no such folder; give what infer.py wrote")
    table = out / ABLATION
    if not table.exists():
        if truth is None:
            raise HnsegError(f"{out}: has no {ABLATION} to name the cohort; add --truth ROOT")
        return {out.resolve().name: out}, truth
    names, data = _read_ablation(table)
    return {name: out / name for name in names}, truth or data


def _read_ablation(path: Path) -> tuple[list[str], Path]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names, data = [str(name) for name in content["arms"]], Path(content["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HnsegError(f"{path}: cannot be read ({error!r}); write it again") from error
    if not names:
        raise HnsegError(f"{path}: 'arms' is empty; name the arms' folders")
    return names, data


def read_arm(name: str, folder: Path, truth: Path) -> Arm:
    """Score an arm from its masks.

    Raises:
        HnsegError: A damaged table, or as `evaluate`.
    """
    _, cases = read_table(folder / CASES, _ANEW, ("case_id",))
    reasons = {row["case_id"]: row.get("look_first", "") for row in cases}
    agreements = _read_agreements(folder / LESIONS)
    report = evaluate(truth, folder)
    rows = [
        CaseRow(score, reasons.get(score.case_id, ""), agreements.get(score.case_id))
        for score in report.cases
    ]
    return Arm(name, folder, report, worst_first(rows))


def _read_agreements(path: Path) -> dict[str, float]:
    """By case, that of the lesion on which fewest members agree."""
    agreements: dict[str, float] = {}
    for row in read_table(path, _ANEW, ("case_id",))[1]:
        if cell := row.get("agreement"):
            share = _share(cell, f"{path}: {row['case_id']}")
            agreements[row["case_id"]] = min(share, agreements.get(row["case_id"], share))
    return agreements


def _share(cell: str, where: str) -> float:
    try:
        share = float(cell)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise HnsegError(f"{where} has agreement {cell[:30]!r}, no number from 0 to 1; {_ANEW}")
    return share


def worst_first(rows: Sequence[CaseRow]) -> list[CaseRow]:
    """Cases that infer.py says to look at first, then the others, each by Dice from the worst on."""
    return sorted(rows, key=lambda row: (not row.look_first, row.dice, row.score.case_id))
