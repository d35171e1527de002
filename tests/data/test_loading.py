"""Loader processes that fit the machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnseg.data.datamodule import AHEAD, Loading, choose_loading
from hnseg.errors import HnsegError

GIB = 2**30


def test_on_the_processor_the_training_loads_by_itself():
    assert choose_loading("auto", gpus=0, batch_bytes=GIB, cores=64) == Loading(0, pin=False)


@pytest.mark.parametrize(
    ("gpus", "cores", "shared", "workers"),
    [
        (1, 16, 512 * GIB, 12),  # nnU-Net's number is enough
        (1, 8, 512 * GIB, 7),  # one core is left to the training
        (4, 32, 512 * GIB, 7),  # four trainings side by side
        (1, 16, 64 * 2**20, 0),  # a container's usual /dev/shm
        (1, 16, 12 * GIB, 6),  # 12 GiB hold 12 batches, of which half are used: 6 processes with 2 of 0.5 GiB
        (8, 8, 512 * GIB, 0),
    ],
)
def test_each_gpu_gets_its_share(gpus, cores, shared, workers):
    chosen = choose_loading("auto", gpus=gpus, batch_bytes=GIB // 2, cores=cores, shared=shared)
    assert chosen == Loading(workers, pin=True)


@given(
    gpus=st.integers(1, 16),
    cores=st.integers(1, 256),
    shared=st.integers(0, 2**40),
    size=st.integers(1, 2**34),
)
def test_what_is_chosen_never_takes_more_than_there_is(gpus, cores, shared, size):
    workers = choose_loading("auto", gpus=gpus, batch_bytes=size, cores=cores, shared=shared).workers
    assert 0 <= workers <= 12
    assert gpus * workers <= max(cores - gpus, 0)
    assert workers * AHEAD * size <= shared / 2


def test_a_number_is_taken_as_it_is_and_anything_else_refused():
    assert choose_loading(3, gpus=0, batch_bytes=GIB).workers == 3
    assert choose_loading(0, gpus=1, batch_bytes=GIB) == Loading(0, pin=True)
    for wrong in (-1, 1.5, True, "many", None):
        with pytest.raises(HnsegError, match=rf"data\.workers={wrong}: give a number"):
            choose_loading(wrong, gpus=0, batch_bytes=GIB)


def test_it_is_told_in_words():
    assert str(Loading(0, pin=False)) == "batches are made by the training process"
    assert str(Loading(1, pin=False)) == "batches are made by 1 process, 2 ahead each"
    assert str(Loading(7, pin=True)) == "batches are made by 7 processes, 2 ahead each, in pinned memory"


def test_processes_that_train_together_share_the_memory():
    room = {"gpus": 4, "batch_bytes": GIB // 2, "cores": 64, "shared": 48 * GIB}
    assert choose_loading("auto", **room).workers == 12
    assert choose_loading("auto", processes=4, **room).workers == 6
