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

COLUMNS = ["case_id", "status", "seconds", "unseen", "outside_ml", "fallbacks", "message"]


@dataclass(frozen=True)
class Outcome:
    """One line of cases.csv.

    Args:
        case_id: The case.
        status: ok or error.
        seconds: From reading to writing.
        unseen: Whether no network that made the mask was trained on the case; None without a mask.
        outside_ml: Coarse lesion that the fine stage did not look at, ml; None where it has no cube.
        fallbacks: What was done where a stage found nothing.
        message: Why there is no mask, or what to know of the images.
    """

    case_id: str
    status: str
    seconds: float
    unseen: bool | None = None
    outside_ml: float | None = None
    fallbacks: str = ""
    message: str = ""

    @property
    def row(self) -> dict[str, str]:
        """The line, by column."""
        return {
            "case_id": self.case_id,
            "status": self.status,
            "seconds": f"{self.seconds:.2f}",
            "unseen": "" if self.unseen is None else "yes" if self.unseen else "no",
            "outside_ml": "" if self.outside_ml is None else f"{self.outside_ml:.2f}",
            "fallbacks": self.fallbacks,
            "message": self.message,
        }

    @property
    def remarks(self) -> str:
        """What a reader of the terminal should know."""
        lost = f"{self.outside_ml:.2f} ml of coarse lesion outside the cube" if self.outside_ml else ""
        return "; ".join(filter(None, (self.fallbacks, lost, self.message)))


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
            if outcome.remarks:
                style = "red" if outcome.status == "error" else "yellow"
                text = escape(f"{case.case_id}: {outcome.status}: {outcome.remarks}")
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
        result = cascade(ct, pet, case.case_id)
        write_image(result.mask, target)
    except Exception as error:
        if cascade.names[-1] != "head":  # heads may have been drawn, or corrected, by hand
            target.unlink(missing_ok=True)  # an earlier call's mask would pass for this one's
        message = str(error)
        if not isinstance(error, HnsegError):  # a defect, or no memory left; the next case may do well
            traceback.print_exc()
            message = f"{type(error).__name__}: {' '.join(message.split())} (a defect, please report it)"
        return Outcome(case.case_id, "error", perf_counter() - start, message=message)
    return Outcome(
        case.case_id,
        "ok",
        perf_counter() - start,
        unseen=result.unseen,
        outside_ml=result.outside_ml,
        fallbacks="; ".join(result.fallbacks),
        message="; ".join(f.text for f in findings),
    )


def _write_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    """Lines of earlier calls stay, unless their case was segmented again."""
    rows = _read_rows(path) | {outcome.case_id: outcome.row for outcome in outcomes}
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[case_id] for case_id in sorted(rows))


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}
