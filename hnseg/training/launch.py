"""The processes that train one network together: how many there are, who starts them, which one this is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from hnseg.config import Job, Trainer
from hnseg.errors import HnsegError

# Torch and Lightning are imported where they are used: a single process asks for neither here.


@dataclass(frozen=True)
class Processes:
    """The processes of one training, each with an equal share of every batch.

    Args:
        local: Processes on each machine.
        nodes: Machines.
        rank: Of this process; rank 0 alone writes the run's folder, logs and prints.
        launcher: What starts them: Lightning, from rank 0 on, or torchrun or SLURM, all at once.
    """

    local: int = 1
    nodes: int = 1
    rank: int = 0
    launcher: Literal["lightning", "torchrun", "slurm"] = "lightning"

    @property
    def size(self) -> int:
        """On all machines."""
        return self.local * self.nodes

    @property
    def child(self) -> bool:
        """Whether Lightning has started this process from that of rank 0."""
        return self.launcher == "lightning" and self.rank > 0

    def say(self, text: str) -> None:
        """Prints, by rank 0 alone."""
        if self.rank == 0:
            print(text, flush=True)


ALONE = Processes()


def find_processes(trainer: Trainer, environment: Mapping[str, str] = os.environ) -> Processes:
    """The processes that torchrun or SLURM started; else as many as the configuration asks for.

    `trainer.processes=auto` is one on each GPU, two on the CPU.
    """
    wanted = trainer.processes
    if "TORCHELASTIC_RUN_ID" in environment:
        size, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return Processes(local, size // local, int(environment["RANK"]), "torchrun")
    # Without processes, a job's tasks train each for itself.
    if wanted != 1 and "SLURM_STEP_ID" in environment and environment["SLURM_NTASKS"] != "1":
        size, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", 1))
        return Processes(size // nodes, nodes, int(environment["SLURM_PROCID"]), "slurm")
    return Processes(_count(wanted, trainer.device), rank=int(environment.get("LOCAL_RANK", 0)))


def _count(wanted: int | str, device: str) -> int:
    if wanted == 1:
        return 1
    import torch

    from hnseg.devices import pick_device

    if pick_device(device).type == "cpu":
        return 2 if wanted == "auto" else int(wanted)
    gpus = torch.cuda.device_count()
    if wanted != "auto" and int(wanted) > gpus:
        raise HnsegError(
            f"trainer.processes={wanted}: each takes a GPU, and there are {gpus}; choose trainer.device=cpu"
        )
    return gpus if wanted == "auto" else int(wanted)


def check_share(job: Job, processes: int, validated: int) -> None:
    """Refuses a batch, or a number of validation cases, that does not serve all processes."""
    batch, accumulate = job.training.batch_size, job.trainer.accumulate
    if batch % (processes * accumulate):
        in_parts = f" and trainer.accumulate={accumulate}" if accumulate > 1 else ""
        raise HnsegError(
            f"training.batch_size={batch} is not divisible among {processes} processes{in_parts}: it is the "
            f"batch of all together; choose a multiple of {processes * accumulate}, or another "
            "trainer.processes"
        )
    if validated < processes:
        raise HnsegError(
            f"trainer.processes: {processes} processes for {validated} validation cases; start fewer, or "
            "make larger folds (data.folds)"
        )


def sweep_overrides() -> list[str] | None:
    """The overrides of this job of a sweep; None outside of one."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return list(HydraConfig.get().overrides.task)


def train_in_own_process(overrides: Sequence[str]) -> None:
    """Trains a sweep's job by a command of its own.

    Lightning starts a training's processes with this process's command line, which is the whole sweep's.
    """
    command = [sys.executable, "-m", "hnseg", "train", *overrides, "hydra.mode=RUN"]
    # Hydra's switch, which the sweep has set for itself, would show a traceback instead of one line.
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise HnsegError(f"ended with exit status {status}; its message is above")
