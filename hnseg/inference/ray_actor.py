"""What each process of a Ray cluster does: it loads one ensemble and segments the cases it is given."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from hnseg.errors import HnsegError
from hnseg.hardware import pick_device
from hnseg.inference.provenance import Provenance
from hnseg.inference.setup import Setup
from hnseg.inference.work import Made, Work
from hnseg.models.bundle import LISTING

CASES_EACH = 2  # on an actor: one with the networks while the other is read or written


class Actor:
    """One loaded ensemble in a process of its own; Ray calls it from `CASES_EACH` threads.

    Args:
        setup: What to load.
        device: Where its networks run: cpu or cuda.
        folder: The caller's working directory, which paths may be relative to.
    """

    def __init__(self, setup: Setup, device: str, folder: Path) -> None:
        self._setup, self._device, self._folder = setup, device, folder
        self._one_at_a_time: AbstractContextManager[Any] = Lock()

    def load(self) -> Provenance:
        """Loads the ensemble, and says what its masks are made with.

        Raises:
            HnsegError: The node does not reach the bundle, or what `Setup.load` refuses.
        """
        with suppress(OSError):  # a node may reach absolute paths alone
            os.chdir(self._folder)
        if not (self._setup.bundle / LISTING).exists():
            raise HnsegError(
                f"bundle={self._setup.bundle}: not there on {socket.gethostname()}; each node of the cluster "
                "must reach bundle, scans and out: put them on storage that all nodes mount"
            )
        (self._cascade,) = self._setup.load([pick_device(self._device)])
        if self._cascade.networks.device.type == "cuda":  # as `LocalEngine` has it
            self._one_at_a_time = nullcontext()
        return Provenance.of(self._cascade)

    def segment(self, work: Work) -> Made:
        """Takes a case from its files to its mask."""
        work.read()
        with self._one_at_a_time:
            work.segment(self._cascade)
        return work.save()
