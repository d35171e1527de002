"""What became of each case of a list: progress, lines on the terminal, and the folder's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from hnseg.errors import HnsegError
from hnseg.imaging.case import Case
from hnseg.inference.records import FORMATS, require_own_tables, write_tables

_REFRESH_S = 5.0  # how often the tables are written while the list runs, at most
_REFRESH_SHARE = 0.02  # of the time that writing them may take: it reads all records


@dataclass(frozen=True)
class Outcome:
    """What a call has to say of a case.

    Args:
        out: The folder.
        case_id: The case.
        status: ok, error, skipped (an earlier call's mask still holds) or elsewhere (another process has it).
        message: Why there is no mask, or what to know of it.
    """

    out: Path
    case_id: str
    status: Literal["ok", "error", "skipped", "elsewhere"]
    message: str = ""


Report = Callable[[Outcome], None]  # from any thread


def summary(outcomes: Sequence[Outcome], out: Path) -> str:
    """A call's last line."""
    counts = Counter[str](outcome.status for outcome in outcomes)
    done = f"{counts['ok'] + counts['skipped']} of {len(outcomes)} cases segmented: {out}"
    skipped = f"{counts['skipped']} skipped, finished before; overwrite=true segments all"
    elsewhere = f"{counts['elsewhere']} at hand in other processes"
    shown = [text for text, status in ((skipped, "skipped"), (elsewhere, "elsewhere")) if counts[status]]
    return f"{done} ({'; '.join(shown)})" if shown else done


@contextmanager
def reporting(cases: Sequence[Case], folders: Sequence[Path]) -> Iterator[tuple[Report, list[Outcome]]]:
    """Checks the folders, shows progress, and makes the tables every few seconds and at the end.

    Args:
        cases: The case list.
        folders: Of masks.

    Yields:
        What to call with each outcome, from any thread, and the list of those outcomes.

    Raises:
        HnsegError: A folder cannot be written, or holds images of the case list under the masks' names, or
            tables that are not hnseg's.
    """
    for out in folders:
        _require_usable(out, cases)
    bar = (
        "Segmenting",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
    )
    outcomes: list[Outcome] = []
    one_at_a_time, due = Lock(), monotonic() + _REFRESH_S
    with Progress(*bar, console=Console(stderr=True)) as progress:
        shown = progress.add_task("", total=len(cases) * len(folders))

        def report(outcome: Outcome) -> None:
            nonlocal due
            with one_at_a_time:
                outcomes.append(outcome)
                progress.advance(shown)
                if outcome.message:
                    style = "red" if outcome.status == "error" else "yellow"
                    text = escape(f"{outcome.case_id}: {outcome.status}: {outcome.message}")
                    progress.console.print(f"[{style}]{text}[/]", soft_wrap=True, highlight=False)
                if (start := monotonic()) > due:
                    write_tables(outcome.out)
                    due = monotonic() + max(_REFRESH_S, (monotonic() - start) / _REFRESH_SHARE)

        try:
            yield report, outcomes
        finally:
            for out in folders:
                write_tables(out)


def _require_usable(out: Path, cases: Sequence[Case]) -> None:
    # realpath passes over links that lead in a circle; resolve would end the call for one case's sake.
    images = {realpath(path) for case in cases for path in (case.ct, case.pet, case.label) if path}
    for case in cases:
        for extension in FORMATS:
            name = f"{case.case_id}{extension}"
            if realpath(out / name) in images:
                raise HnsegError(f"out={out}: {name} is an image of the case list; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HnsegError(f"out={out}: {error.strerror}; choose another folder") from error
    require_own_tables(out)
