"""Jobs over cascades side by side, read one ahead and saved one behind.

While the networks of a cascade work on a case, one thread reads and checks its next and another writes its
last: ITK and gzip leave the interpreter alone meanwhile. No more than that is under way, so that memory stays
flat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Generic, Protocol, TypeVar

from hnseg.imaging.case import Case

Lane = TypeVar("Lane")  # what segments on one device: a cascade, or the arms of an ensemble
Result = TypeVar("Result")
_Lane = TypeVar("_Lane", contravariant=True)
_Result = TypeVar("_Result", covariant=True)


@dataclass(frozen=True)
class Told(Generic[Result]):
    """Who is told how cases fare; from any thread.

    Args:
        take_up: Given a case's name before anything is done with it.
        begin: Given it when its networks begin.
        done: Given what was made of it.
    """

    take_up: Callable[[str], None]
    begin: Callable[[str], None]
    done: Callable[[Result], None]


class Job(Protocol[_Lane, _Result]):
    """A case on its way from its files to what is made of it; each step may run in a thread of its own."""

    @property
    def case(self) -> Case:
        """The case."""
        ...

    def read(self) -> None:
        """Reads its images."""

    def segment(self, cascade: _Lane, /) -> None:
        """Runs the networks."""

    def save(self) -> _Result:
        """Writes what they found, and says what became of the case."""
        ...


def run_lanes(
    jobs: Sequence[Job[Lane, Result]],
    cascades: Sequence[Lane],
    told: Told[Result],
) -> None:
    """Takes every case from its files to its mask.

    Args:
        jobs: The cases.
        cascades: Those that work side by side, one of them twice if it is to have two cases at a time; each
            takes the next case when it is free.
        told: Of every case.
    """
    queue, stop = deque(jobs), Event()
    if len(cascades) == 1:  # in this thread, where Ctrl-C ends it amid a case
        _overlap(queue, cascades[0], told, stop)
        return
    with ThreadPoolExecutor(len(cascades), "cascade") as pool:
        running = [pool.submit(_overlap, queue, cascade, told, stop) for cascade in cascades]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # whatever ends one, or this thread, ends all after the cases that have the networks
    for lane in running:
        lane.result()


def _overlap(
    queue: deque[Job[Lane, Result]],
    cascade: Lane,
    told: Told[Result],
    stop: Event,
) -> None:
    """Reads one case ahead and writes one behind; leaving it, whatever the reason, finishes both."""

    def save(job: Job[Lane, Result]) -> None:
        told.done(job.save())

    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "read") as reader:
        for job in _ahead(queue, told.take_up, reader):
            if stop.is_set():
                break
            told.begin(job.case.case_id)
            job.segment(cascade)
            if writing is not None:
                writing.result()
            writing = writer.submit(save, job)
        if writing is not None:
            writing.result()


def _ahead(
    queue: deque[Job[Lane, Result]], take_up: Callable[[str], None], reader: ThreadPoolExecutor
) -> Iterator[Job[Lane, Result]]:
    """Jobs whose images have been read, while those of the next one are."""
    reading: deque[tuple[Job[Lane, Result], Future[None]]] = deque()

    def read_next() -> None:
        with suppress(IndexError):  # others take from the queue too
            job = queue.popleft()
            take_up(job.case.case_id)
            reading.append((job, reader.submit(job.read)))

    read_next()
    while reading:
        job, future = reading.popleft()
        future.result()
        read_next()
        yield job
