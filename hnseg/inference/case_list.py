"""A case list → masks on disk. A bad case is reported; the others still finish.

While the networks work on a case, one thread reads and checks the next and another writes the last: ITK and
gzip leave the interpreter alone meanwhile. No more than that is under way, so that memory stays flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from os.path import realpath
from pathlib import Path

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
from hnseg.errors import HnsegError
from hnseg.files import sole_writer
from hnseg.inference.cascade import Cascade
from hnseg.inference.outcome import Outcome
from hnseg.inference.record import FORMATS, Record, made_from
from hnseg.inference.work import Work


def segment_cases(
    cases: Sequence[Case],
    cascade: Cascade,
    out: Path,
    *,
    extension: str = ".nii.gz",
    overwrite: bool = False,
) -> list[Outcome]:
    """Segments every case that can be segmented.

    Writes OUT/CASE.nii.gz, OUT/cases.csv, OUT/lesions.csv, and the maps that were asked for into
    OUT/maps/CASE. Cases that an earlier call finished are skipped where neither their files, the bundle,
    the settings nor what was written for them has changed since.

    Args:
        cases: The case list; files may be missing or damaged.
        cascade: The loaded stages.
        out: Output folder.
        extension: Of masks and maps, .nii.gz or .mha.
        overwrite: Segment finished cases again.

    Returns:
        What became of each case, in order.

    Raises:
        HnsegError: `out` cannot be a folder, holds images of the case list under the masks' names or
            a table that is not hnseg's, or another process writes there.
    """
    _claim(out, cases)
    with sole_writer(out):
        record = Record(out, extension, heads=cascade.names[-1] == "head")
        works = [Work(case, made_from(case, cascade, extension)) for case in cases]
        todo = [work for work in works if overwrite or not record.holds(work.case.case_id, work.made_from)]
        outcomes = {case.case_id: Outcome(case.case_id, "skipped") for case in cases}
        with _display(len(cases), len(cases) - len(todo)) as (begin, end):

            def done(outcome: Outcome) -> None:
                outcomes[outcome.case_id] = outcome
                end(outcome)

            _overlap(todo, cascade, record, begin, done)
    return list(outcomes.values())


def _overlap(
    works: Sequence[Work],
    cascade: Cascade,
    record: Record,
    begin: Callable[[str], None],
    end: Callable[[Outcome], None],
) -> None:
    """Reads one case ahead and writes one behind; leaving it, whatever the reason, finishes both."""
    writing: Future[Outcome] | None = None
    with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "read") as reader:
        for work in _ahead(works, reader):
            begin(work.case.case_id)
            work.segment(cascade)
            if writing is not None:
                end(writing.result())
            writing = writer.submit(work.write, record)
        if writing is not None:
            end(writing.result())


def _ahead(works: Sequence[Work], reader: ThreadPoolExecutor) -> Iterator[Work]:
    """Works whose images have been read, while those of the next one are."""
    reading = [reader.submit(work.read) for work in works[:1]]
    for n, work in enumerate(works):
        reading.pop().result()
        reading += [reader.submit(following.read) for following in works[n + 1 : n + 2]]
        yield work


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
def _display(total: int, skipped: int) -> Iterator[tuple[Callable[[str], None], Callable[[Outcome], None]]]:
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
