"""Worker processes of one thread each, and libraries kept from talking over the progress bar."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import SimpleITK as sitk
from threadpoolctl import threadpool_limits

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
    # NumPy and SciPy bring a BLAS each, which has to be there to be limited.
    import scipy.linalg  # noqa: F401

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)


def quiet() -> None:
    """Leaves the terminal to the progress bar: libraries speak only of what went wrong."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torchio")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # Of convolutions of one voxel, whose channels-last strides are told in two ways.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
