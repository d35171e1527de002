"""How many processes make batches, chosen from the machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hnseg.errors import HnsegError

AHEAD = 2  # batches that each process has ready
_MOST = 12  # nnU-Net's own number for one GPU
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Loading:
    """Loader processes of a training.

    Args:
        workers: Processes; with 0 the training process loads by itself.
        pin: Copy batches to the GPU from memory that it reads directly, while it computes.
    """

    workers: int
    pin: bool

    def __str__(self) -> str:
        if not self.workers:
            return "batches are made by the training process"
        plural = "es" if self.workers > 1 else ""
        pinned = ", in pinned memory" if self.pin else ""
        return f"batches are made by {self.workers} process{plural}, {AHEAD} ahead each{pinned}"


IN_PROCESS = Loading(0, pin=False)


def choose_loading(
    workers: int | Literal["auto"],
    *,
    gpus: int,
    batch_bytes: int,
    processes: int = 1,
    cores: int | None = None,
    shared: int | None = None,
) -> Loading:
    """How to load for one training.

    On the processor alone the network takes all cores, and further processes would take turns with it. Each
    GPU that is there gets its share of the cores but one, no more than nnU-Net takes. Batches lie in shared
    memory, of which a container often has little: no more processes than half of it holds batches for, lest
    one dies of it.

    Args:
        workers: Processes, or `auto`.
        gpus: GPUs of this machine that trainings may share it for; 0 trains on the processor.
        batch_bytes: Of one batch.
        processes: That train together on this machine and share its memory.
        cores: Of this process; those that it may run on by default.
        shared: Free bytes of shared memory; those of /dev/shm by default.

    Raises:
        HnsegError: Neither `auto` nor a count.
    """
    if workers != "auto":
        if type(workers) is not int or workers < 0:
            raise HnsegError(f"data.workers={workers}: give a number of processes, 0 for none, or auto")
        return Loading(workers, pin=gpus > 0)
    if not gpus:
        return IN_PROCESS
    cores = cores or _usable_cores()
    share = min(cores // gpus - 1, _MOST)
    room = _free_shared() if shared is None else shared
    if room is not None:
        share = min(share, room // 2 // (AHEAD * batch_bytes * processes))
    return Loading(max(share, 0), pin=True)


def _usable_cores() -> int:
    """Cores that this process may run on, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_shared() -> int | None:
    """Free bytes of shared memory; None where the system has no such folder."""
    return shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else None
