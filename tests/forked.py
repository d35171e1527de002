"""Entry points as processes that can be killed at a chosen moment."""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from entry import ROOT

# An entry point in a fork for each line of arguments: importing takes far longer than what is to be killed.
_FORKS = """
import os, runpy, shlex, sys
import hnseg.app, hnseg.inference.backends, hnseg.inference.predict_cases, hnseg.training.fit
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        sys.argv, status = shlex.split(line), 1
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Forked:
    """An entry point, each call a process of its own.

    Args:
        script: Its file in the repository.
        arguments: Of every call.
    """

    def __init__(self, script: str, *arguments: str) -> None:
        self.arguments = [str(ROOT / script), *arguments]
        self.forks = subprocess.Popen(
            [sys.executable, "-c", _FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            bufsize=0,
        )

    def __call__(
        self, folder: Path, *arguments: str, moment: float | None = None, amid: bool = False
    ) -> float | None:
        """Kills it `moment` seconds after it touched `folder`, or from then on `amid` the next file there.

        Returns:
            The seconds it took from the first touch if it ended, else None.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = folder.stat().st_mtime_ns
        self.forks.stdin.write(f"{shlex.join([*self.arguments, *arguments])}\n".encode())
        child = int(self.forks.stdout.readline())
        while folder.stat().st_mtime_ns == before and not self._ended(0):
            time.sleep(0.001)
        start = time.monotonic()
        if not self._ended(moment):
            while amid and not self._ended(0) and not _writing(folder):
                pass
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(child, signal.SIGKILL)
        took = time.monotonic() - start
        status = int(self.forks.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return took if status == 0 else None

    def close(self) -> None:
        """Ends the process that forks."""
        self.forks.communicate()

    def _ended(self, timeout: float | None) -> bool:
        return bool(select.select([self.forks.stdout], [], [], timeout)[0])


def _writing(folder: Path) -> bool:
    return any(path.name.startswith(".") for path in folder.iterdir())
