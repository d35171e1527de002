"""Loader processes that fit the machine."""

import os
import shutil
from types import SimpleNamespace

import pytest

from hnseg.data.datamodule import Loading, choose_loading

GIB = 2**30


@pytest.mark.parametrize(
    ("gpus", "cores", "shared", "processes", "workers"),
    [
        (1, 16, 512 * GIB, 1, 12),  # at most nnU-Net's number
        (1, 8, 512 * GIB, 1, 7),  # one core is left to the training
        (4, 32, 512 * GIB, 1, 7),  # four trainings side by side
        (1, 16, 64 * 2**20, 1, 0),  # a container's usual /dev/shm
        (1, 16, 12 * GIB, 1, 6),  # half of it holds 12 batches of 0.5 GiB: 6 processes with 2 each
        (4, 64, 48 * GIB, 4, 6),  # processes that train together share the memory
        (8, 8, 512 * GIB, 1, 0),
    ],
)
def test_each_gpu_gets_its_share(monkeypatch, gpus, cores, shared, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=shared))
    loading = choose_loading("auto", gpus=gpus, batch_bytes=GIB // 2, processes=processes)
    assert loading == Loading(workers, pin=True)


def test_on_the_processor_the_training_loads_by_itself_and_a_number_is_taken_as_it_is():
    assert choose_loading("auto", gpus=0, batch_bytes=GIB) == Loading(0, pin=False)
    assert choose_loading(3, gpus=0, batch_bytes=GIB) == Loading(3, pin=False)
    assert choose_loading(0, gpus=1, batch_bytes=GIB) == Loading(0, pin=True)
