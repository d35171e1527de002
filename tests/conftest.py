"""What all tests share: helpers to import, one thread for arithmetic, the same random examples every time."""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from subprocess import Popen
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A failure must mean a change of the code. To search further: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

WORKERS: list[Popen[bytes]] = []  # of pytest -n


@pytest.fixture
def only_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No Ray of a test in another worker: engine.address=auto would find it."""
    with (tmp_path_factory.getbasetemp().parent / "ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Keeps OpenVINO out of the process that runs all else: with it, that process ends in a crash."""
    wanted = config.option.markexpr
    if "openvino" not in wanted or "not openvino" in wanted:
        sys.modules["openvino"] = None  # type: ignore[assignment]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_newgateway(gateway: Any) -> None:
    WORKERS.append(gateway._io.popen)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fails the run where a worker crashes after its last test, which xdist passes over."""
    yield
    slow = -signal.SIGKILL  # to end: xdist's own way with those
    if crashed := sum(worker.wait() not in (0, slow) for worker in WORKERS):
        print(f"{crashed} workers crashed after their tests", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
