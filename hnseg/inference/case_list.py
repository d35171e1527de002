"""A case list → masks on disk. A bad case is reported; the others still finish."""

from __future__ import annotations

import csv
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hnseg.cases import Case
from hnseg.checks import check_case
from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.images import read_image, write_image
from hnseg.inference.cascade import Cascade

COLUMNS = ["case_id", "status", "seconds", "fallbacks", "message"]


@dataclass(frozen=True)
class Outcome:
    """One line of cases.csv."""

    case_id: str
    status: str
    seconds: float
    fallbacks: str = ""
    message: str = ""


def segment_cases(cases: Sequence[Case], cascade: Cascade, out: Path) -> list[Outcome]:
    """Segments every case that can be segmented and writes OUT/CASE.nii.gz and OUT/cases.csv.

    Args:
        cases: The case list; files may be missing or damaged.
        cascade: The loaded stages.
        out: Output folder.

    Returns:
        What became of each case, in order.

    Raises:
        HnsegError: `out` cannot be a folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HnsegError(f"out={out}: {error.strerror}; choose another folder") from error
    console = Console(stderr=True)
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
    )
    outcomes = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Segmenting", total=len(cases))
        for case in cases:
            progress.update(task, description=f"Segmenting {escape(case.case_id)}")
            outcome = _segment(case, cascade, out)
            outcomes.append(outcome)
            _write_csv(outcomes, out / "cases.csv")
            progress.advance(task)
            if remarks := "; ".join(filter(None, (outcome.fallbacks, outcome.message))):
                style = "red" if outcome.status == "error" else "yellow"
                text = escape(f"{case.case_id}: {outcome.status}: {remarks}")
                progress.console.print(f"[{style}]{text}[/]", soft_wrap=True, highlight=False)
    return outcomes


def _segment(case: Case, cascade: Cascade, out: Path) -> Outcome:
    start = perf_counter()
    target = out / f"{case.case_id}.nii.gz"
    try:
        ct, pet = read_image(case.ct), read_image(case.pet)
        findings = check_case(ct, pet)
        faults = [f.text for f in findings if f.level == "error"]
        if faults:
            raise HnsegError(faults[0])
        result = cascade(ct, pet)
        write_image(result.mask, target)
    except Exception as error:
        target.unlink(missing_ok=True)  # an earlier call's mask would pass for this one's
        message = str(error)
        if not isinstance(error, HnsegError):  # a defect, or no memory left; the next case may do well
            traceback.print_exc()
            message = f"{type(error).__name__}: {' '.join(message.split())} (a defect, please report it)"
        return Outcome(case.case_id, "error", perf_counter() - start, message=message)
    warnings = "; ".join(f.text for f in findings)
    return Outcome(case.case_id, "ok", perf_counter() - start, "; ".join(result.fallbacks), warnings)


def _write_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    """Lines of earlier calls stay, unless their case was segmented again."""
    rows = _read_rows(path) if path.exists() else {}
    rows |= {o.case_id: [o.case_id, o.status, f"{o.seconds:.2f}", o.fallbacks, o.message] for o in outcomes}
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows[case_id] for case_id in sorted(rows))


def _read_rows(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0]: row for row in csv.reader(file) if row and row != COLUMNS}
