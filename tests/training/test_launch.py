"""How many processes train together, by torchrun's and SLURM's variables or by the configuration."""

import pytest

from hnseg.config import Trainer, compose_job
from hnseg.training.launch import Processes, find_processes

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_NNODES": "2"}


def trainer(wanted: int | str) -> Trainer:
    return compose_job([f"trainer.processes={wanted}", "trainer.device=cpu"]).trainer


@pytest.mark.parametrize(("environment", "launcher"), [(TORCHRUN, "torchrun"), (SLURM, "slurm")])
@pytest.mark.parametrize("wanted", ["auto", 2])
def test_processes_that_were_started_are_taken(environment, launcher, wanted):
    found = find_processes(trainer(wanted), environment)
    assert found == Processes(4, 2, rank=5, launcher=launcher)
    assert found.size == 8


@pytest.mark.parametrize(
    ("wanted", "environment", "size"),
    [
        (1, {}, 1),
        (1, SLURM, 1),  # a job's tasks that train each for itself
        ("auto", SLURM | {"SLURM_NTASKS": "1"}, 2),
        ("auto", {}, 2),
        (3, {}, 3),
    ],
)
def test_else_the_configuration_says_how_many(wanted, environment, size):
    found = find_processes(trainer(wanted), environment)
    assert (found.size, found.launcher) == (size, "lightning")
