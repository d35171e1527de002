"""Processes that share a machine's cores, one thread each."""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import SimpleITK as sitk
from threadpoolctl import threadpool_limits

_kept: list[Any] = []  # limits hold as long as somebody holds them


def make_pool(workers: int) -> ProcessPoolExecutor:
    """Processes for work on whole cases, as many as cores at most: each computes by one thread.

    Two processes whose threads wait for each other on the same cores take several times as long as one.

    Args:
        workers: Processes.
    """
    # spawn: a forked child would inherit the locks of ITK's and torch's threads without the threads, and wait
    # for ever.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    # NumPy and SciPy bring a BLAS each, which has to be there to be limited.
    import scipy.linalg  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer, without tracebacks
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    _kept.append(threadpool_limits(1))
