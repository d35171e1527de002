"""Worker processes of one thread each, and silence of libraries beside a progress bar."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import SimpleITK as sitk
from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits

from hnseg.errors import HnsegError

T = TypeVar("T")
R = TypeVar("R")

_PR_SET_PDEATHSIG = 1


def make_pool(workers: int) -> ProcessPoolExecutor:
    """Processes for work on whole cases, as many as cores at most: each computes by one thread.

    Two processes whose threads wait for each other on the same cores take several times as long as one.

    Args:
        workers: Processes.
    """
    # spawn: a forked child would inherit the locks of ITK's and torch's threads without the threads, and wait
    # for ever.
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (os.getpid(),))


def map_cases(
    work: Callable[[T], R], cases: Sequence[T], title: str, *, workers: int | None = None, most: int = 4
) -> Iterator[R]:
    """The results of `work` in the order of `cases`, with a progress bar on stderr.

    Args:
        work: Runs in worker processes, so that it and its results are pickled; in this one for one worker.
        cases: Its arguments.
        title: Of the progress bar.
        workers: Processes. Default: one for each core, `most` at most.
        most: For work that takes gigabytes of memory.

    Raises:
        HnsegError: A worker was killed, most likely for want of memory.
    """
    workers = min(workers or min(most, os.cpu_count() or 1), len(cases))
    bar = partial(track, description=title, total=len(cases), console=Console(stderr=True))
    if workers <= 1:
        yield from bar(map(work, cases))
        return
    try:
        with make_pool(workers) as pool:
            yield from bar(pool.map(work, cases))
    except BrokenProcessPool as error:
        raise HnsegError(
            f"one of {workers} workers was killed, likely for memory; use fewer workers"
        ) from error


def follow(parent: int) -> None:
    """Leaves Ctrl-C to the parent, without tracebacks, and has this process die with it, however it ends.

    Args:
        parent: The process that started this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was faster
            os.kill(os.getpid(), signal.SIGKILL)


def _begin(parent: int) -> None:
    follow(parent)
    # NumPy and SciPy bring a BLAS each, which must be loaded to be limited.
    import scipy.linalg  # noqa: F401

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)


def silence_libraries() -> None:
    """Leaves the terminal to the progress bar: libraries report errors alone."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torchio")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # Of convolutions of one voxel, whose channels-last strides have two spellings.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
