"""Starts the processes of a team on this machine, and sees to it that they live and die together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hnseg.errors import HnsegError
from hnseg.processes import follow
from hnseg.training.team import Team

_MOMENT = 2.0  # seconds


def spread(function: Callable[..., Any], size: int, *arguments: Any) -> None:
    """Calls `function(*arguments, team)` in processes of their own, and waits for all.

    Where one fails or is killed, or this process is, the others are killed: they would wait for it in vain.

    Args:
        function: To be found by its name, like its arguments by their contents.
        size: Of the team.
        arguments: What comes before each one's `Team`.

    Raises:
        Exception: What the function raised in one of them.
        HnsegError: One was killed.
    """
    # spawn: a fork of a process that has started threads can hang.
    context = get_context("spawn")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        meeting = f"file://{Path(folder, 'meeting')}"  # as torch reads it, which undoes no quoting
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, follow, (os.getpid(),))) for _ in range(size)
        ]
        pids = [pool.submit(os.getpid) for pool in pools]
        living: list[int] = []
        try:
            wait(pids)
            _raise_first(pids)
            living += [pid.result() for pid in pids]
            teams = [Team(rank, size, rank, size, meeting) for rank in range(size)]
            jobs = [pool.submit(function, *arguments, team) for pool, team in zip(pools, teams, strict=True)]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            if any(job.exception() for job in done):
                wait(jobs, timeout=_MOMENT)  # whose failure the others followed is not always told first
            _raise_first(jobs)
        except BaseException:
            for process in living:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            raise


def _raise_first(jobs: list[Future[Any]]) -> None:
    """The error that the others follow from: one process's mistake breaks off what others ask of it."""
    errors = [error for job in jobs if job.done() and (error := job.exception()) is not None]
    if not errors:
        return
    first = min(errors, key=_follows)
    if isinstance(first, BrokenProcessPool):
        raise HnsegError(
            f"trainer.processes={len(jobs)}: one of them was killed, perhaps for want of memory; the same "
            "command goes on where it stopped"
        ) from first
    raise first


def _follows(error: BaseException) -> int:
    kinds = (HnsegError, BrokenProcessPool, Exception)
    return next((rank for rank, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))
