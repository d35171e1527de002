"""A case list → masks on disk. A bad case is reported; the others still finish.

An engine takes cases from their files to temporary ones, wherever its networks run. The folder has one
keeper, the process that was called: it alone puts files in their places, and writes the tables that speak of
them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from os.path import realpath
from pathlib import Path
from threading import Lock
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hnseg.errors import HnsegError
from hnseg.files import lock
from hnseg.imaging.case import Case
from hnseg.inference.lanes import Told
from hnseg.inference.outcome import Outcome
from hnseg.inference.outputs import FORMATS
from hnseg.inference.provenance import Provenance
from hnseg.inference.record import Record
from hnseg.inference.work import Made, Work


class Engine(Protocol):
    """What runs the networks: `LocalEngine`, or `RayEngine`."""

    provenance: Provenance

    def run(self, works: Sequence[Work], told: Told[Made]) -> None:
        """Takes every case from its files to what `told.done` is given, in any order."""


def segment_cases(
    cases: Sequence[Case],
    engine: Engine,
    out: Path,
    *,
    extension: str = ".nii.gz",
    overwrite: bool = False,
) -> list[Outcome]:
    """Segments every case that can be segmented.

    Writes OUT/CASE.nii.gz, OUT/cases.csv, OUT/lesions.csv, and the maps that were asked for into
    OUT/maps/CASE. Cases that an earlier call finished are skipped where neither their files, the bundle
    nor the settings have changed since. Those amid which one ended, by a kill or for want of memory, come
    last and one by one: whichever ended it, the others are done first.

    Args:
        cases: The case list; files may be missing or damaged.
        engine: What runs the networks.
        out: Output folder.
        extension: Of masks and maps, .nii.gz or .mha.
        overwrite: Segment finished cases again.

    Returns:
        What became of each case, in order.

    Raises:
        HnsegError: `out` cannot be a folder, holds images of the case list under the masks' names, masks
            or maps that are not as hnseg wrote them, or a table that is not hnseg's, or another process
            writes there.
    """
    with keeping(
        out,
        cases,
        engine.provenance,
        extension=extension,
        overwrite=overwrite,
        or_else=", or set overwrite=true to replace them",
    ) as (record, todo):
        outcomes = {case.case_id: Outcome(case.case_id, "skipped") for case in cases}

        with display(len(cases), len(cases) - len(todo)) as (begin, end):
            one_at_a_time = Lock()

            def take_up(case_id: str) -> None:
                with one_at_a_time:
                    record.begin(case_id)

            def done(made: Made) -> None:
                with one_at_a_time:
                    outcome = outcomes[made.outcome.case_id] = record.take(made)
                if made.defect:
                    print(made.defect, file=sys.stderr)
                end(outcome)

            try:
                for works in _in_turn(todo, record):
                    engine.run(works, Told(take_up, begin, done))
            except (Exception, KeyboardInterrupt):
                with one_at_a_time, suppress(HnsegError):  # it would hide the reason
                    record.release()
                raise
    return list(outcomes.values())


def _in_turn(works: Sequence[Work], record: Record) -> list[list[Work]]:
    """What may run side by side; those amid which an earlier call ended come last, each alone and named."""
    tries = {work: record.begun(work.case.case_id) for work in works}
    suspects = sorted((work for work in works if tries[work]), key=lambda work: tries[work])
    if suspects:
        names = ", ".join(work.case.case_id for work in suspects)
        print(f"an earlier call ended amid {names}: last, one by one", file=sys.stderr)
    return [[work for work in works if not tries[work]], *([work] for work in suspects)]


@contextmanager
def keeping(
    out: Path,
    cases: Sequence[Case],
    made_with: Provenance,
    *,
    extension: str = ".nii.gz",
    overwrite: bool = False,
    or_else: str = "",
) -> Iterator[tuple[Record, list[Work]]]:
    """Holds a folder of masks against other processes; yields its record, and what is left to do.

    Args:
        out: The folder.
        cases: The case list.
        made_with: What their masks will be made with.
        extension: Of masks and maps.
        overwrite: Finished cases are to be done again.
        or_else: What else may be done about files that somebody has changed.

    Raises:
        HnsegError: As `segment_cases`.
    """
    _claim(out, cases)
    with lock(out):
        record = Record(out, extension, heads=made_with.until == "head", overwrite=overwrite)
        works = [Work(case, made_with.digest(case, extension), out, extension) for case in cases]
        if not overwrite:
            standing = {work: record.standing(work.case.case_id, work.made_from) for work in works}
            if foreign := [work.case.case_id for work in works if standing[work] == "foreign"]:
                raise HnsegError(
                    f"out={out}: the files of {', '.join(foreign[:3])} there are not as infer.py wrote them; "
                    f"move them away, choose another folder{or_else}"
                )
            works = [work for work in works if standing[work] == "open"]
        yield record, works


def _claim(out: Path, cases: Sequence[Case]) -> None:
    """Makes the folder, and refuses one in which masks would take the place of images of the list."""
    # realpath passes over links that lead in a circle; resolve would end the call for one case's sake.
    images = {realpath(path) for case in cases for path in (case.ct, case.pet, case.label) if path}
    for case in cases:
        for extension in FORMATS:
            target = out / f"{case.case_id}{extension}"
            if realpath(target) in images:
                raise HnsegError(
                    f"out={out}: {target.name} is an image of the case list; choose another folder"
                )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HnsegError(f"out={out}: {error.strerror}; choose another folder") from error


@contextmanager
def display(total: int, skipped: int) -> Iterator[tuple[Callable[[str], None], Callable[[Outcome], None]]]:
    """A progress bar; yields what to call when a case begins and when it has ended."""
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Segmenting", total=total, completed=skipped)

        def begin(case_id: str) -> None:
            progress.update(task, description=f"Segmenting {escape(case_id)}")

        def end(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.remarks:
                style = "red" if outcome.status == "error" else "yellow"
                text = escape(f"{outcome.case_id}: {outcome.status}: {outcome.remarks}")
                progress.console.print(f"[{style}]{text}[/]", soft_wrap=True, highlight=False)

        yield begin, end
