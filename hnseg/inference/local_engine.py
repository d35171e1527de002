"""A case list in this process: one cascade, or one a GPU.

While the networks of a cascade work on a case, one thread reads and checks its next and another writes its
last: ITK and gzip leave the interpreter alone meanwhile. No more than that is under way, so that memory stays
flat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from hnseg.inference.cascade import Cascade
from hnseg.inference.provenance import Provenance
from hnseg.inference.work import Made, Work


class LocalEngine:
    """Runs cascades side by side; each takes the next case of the list when it is free.

    Args:
        cascades: One a device. PyTorch lets go of the interpreter while a GPU works.

    Raises:
        HnsegError: The devices would make different masks.
    """

    def __init__(self, cascades: Sequence[Cascade]) -> None:
        self.cascades = cascades
        self.provenance = Provenance.common([Provenance.of(cascade) for cascade in cascades])

    def run(self, works: Sequence[Work], begin: Callable[[str], None], done: Callable[[Made], None]) -> None:
        """Takes every case from its files to its mask.

        Args:
            works: The cases.
            begin: Told a case's name when its networks begin.
            done: Given what was made of it, in a thread of this process.
        """
        queue = deque(works)
        if len(self.cascades) == 1:  # in this thread, where Ctrl-C ends it amid a case
            _overlap(_taken(queue), self.cascades[0], begin, done)
            return
        with ThreadPoolExecutor(len(self.cascades), "cascade") as lanes:
            running = [
                lanes.submit(_overlap, _taken(queue), cascade, begin, done) for cascade in self.cascades
            ]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                queue.clear()  # whatever ends one, or this thread, ends all after the cases at hand
        for lane in running:
            lane.result()


def _taken(queue: deque[Work]) -> Iterator[Work]:
    """Takes from a queue that others take from too."""
    with suppress(IndexError):
        while True:
            yield queue.popleft()


def _overlap(
    works: Iterator[Work], cascade: Cascade, begin: Callable[[str], None], done: Callable[[Made], None]
) -> None:
    """Reads one case ahead and writes one behind; leaving it, whatever the reason, finishes both."""

    def save(work: Work) -> None:
        done(work.save())

    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "read") as reader:
        for work in _ahead(works, reader):
            begin(work.case.case_id)
            work.segment(cascade)
            if writing is not None:
                writing.result()
            writing = writer.submit(save, work)
        if writing is not None:
            writing.result()


def _ahead(works: Iterator[Work], reader: ThreadPoolExecutor) -> Iterator[Work]:
    """Works whose images have been read, while those of the next one are."""
    reading: deque[tuple[Work, Future[None]]] = deque()

    def read_next() -> None:
        for work in works:
            reading.append((work, reader.submit(work.read)))
            return

    read_next()
    while reading:
        work, future = reading.popleft()
        future.result()
        read_next()
        yield work
