"""Processes that share the cores: one thread each, whatever they compute with."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from processes import all_end
from threadpoolctl import threadpool_info

from hnseg.errors import HnsegError
from hnseg.processes import make_pool, map_cases


def _threads(_: int) -> dict[str, Any]:
    np.ones((64, 64)) @ np.ones((64, 64))
    blas = [(one["filepath"], one["num_threads"]) for one in threadpool_info()]
    itk = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    return {"blas": blas, "itk": itk, "ctrl_c": signal.getsignal(signal.SIGINT), "pid": os.getpid()}


def test_each_process_computes_by_one_thread_and_leaves_ctrl_c_to_its_parent() -> None:
    # Each library's own choice, as where nothing in the environment says otherwise.
    unset = {name: os.environ.pop(name) for name in list(os.environ) if name.endswith("_NUM_THREADS")}
    try:
        with make_pool(2) as pool:
            found = list(pool.map(_threads, range(8)))
    finally:
        os.environ |= unset
    assert os.getpid() not in {worker["pid"] for worker in found}
    for worker in found:
        assert len(worker["blas"]) >= 2  # NumPy's and SciPy's
        assert {threads for _, threads in worker["blas"]} == {1}
        assert worker["itk"] == 1
        assert worker["ctrl_c"] == signal.SIG_IGN


def _work(folder: Path) -> None:
    with make_pool(2) as pool:
        list(pool.map(_sleep, [folder] * 2))


def _sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(3600)


def test_none_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = get_context("spawn").Process(target=_work, args=(tmp_path,))
    parent.start()
    limit = time.monotonic() + 300
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    parent.kill()
    parent.join()
    assert all_end([int(path.name) for path in tmp_path.iterdir()], seconds=60)
    assert len(list(tmp_path.iterdir())) == 2


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(HnsegError, match="one of 2 workers was killed, likely for memory"):
        list(map_cases(_die, range(2), "dying", workers=2))
