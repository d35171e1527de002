"""The processes that train one network together, each on its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

from hnseg.errors import HnsegError

# Torch is imported where it is used: a process of its own has no need of it here.
T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # while the leader prepares a cohort


@dataclass(frozen=True)
class Team:
    """A process among those that train together; by default it is alone.

    The leader, of rank 0, alone writes the run's folder, logs and prints.

    Args:
        rank: Of this process.
        size: Of the team.
        local_rank: Of this process on its machine: its GPU.
        local_size: Processes of the team on each machine.
        meeting: Where they find each other, as `torch.distributed.init_process_group` takes it; `slurm` for
            the place that the job's nodes and number make.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: str = "env://"

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def spread(self) -> bool:
        """Whether hnseg started it, on this machine's cores."""
        return self.meeting.startswith("file:")

    @property
    def node(self) -> int:
        """Number of its machine."""
        return self.rank // self.local_size

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size

    def say(self, text: str) -> None:
        """Prints, once for all."""
        if self.leads:
            print(text, flush=True)

    def join(self, device: str) -> None:
        """Meets the others, once in the life of a process; what follows here presupposes it.

        Args:
            device: The configuration's `trainer.device`.

        Raises:
            HnsegError: It is not to be had here, or this process sees no GPU of its own.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        from hnseg.devices import pick_device

        if dist.is_initialized():
            return
        place: dict[str, Any] = {"rank": self.rank, "world_size": self.size, "init_method": self._place()}
        if pick_device(device).type == "cpu":
            dist.init_process_group("gloo", **place)
            return
        if (seen := torch.cuda.device_count()) < self.local_size:
            raise HnsegError(
                f"trainer.processes: {self.local_size} on this machine, each of which sees {seen} GPU(s); "
                "let all see all (under SLURM --gpus-per-node instead of --gpus-per-task), or start fewer"
            )
        torch.cuda.set_device(self.local_rank)
        dist.init_process_group("nccl", device_id=torch.device("cuda", self.local_rank), **place)

    def _place(self) -> str:
        if self.meeting != "slurm":
            return self.meeting
        from lightning.fabric.plugins.environments import SLURMEnvironment

        job = SLURMEnvironment(auto_requeue=False)
        return f"tcp://{job.main_address}:{job.main_port}"

    @cached_property
    def _waiting(self) -> Any:
        """A group whose members wait for each other as long as it takes, without a GPU."""
        import torch.distributed as dist

        return dist.new_group(backend="gloo", timeout=_PATIENCE)

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._waiting)
        return values

    def share(self, act: Callable[[], T]) -> T:
        """Lets the leader act, and tells everybody what came of it.

        Raises:
            Exception: The leader's, there; the others end without a word.
        """
        result = self._together(act if self.leads else None)
        return self.gather(result)[0]  # type: ignore[return-value]

    def in_turn(self, act: Callable[[], T]) -> T:
        """Lets everybody do what leaves files behind that the next ones find: the leader, one process on
        each other machine, the rest.

        Raises:
            Exception: As `share`.
        """
        mine = 0 if self.leads else 1 if self.local_rank == 0 else 2
        results = [self._together(act if turn == mine else None) for turn in range(3)]
        return results[mine]  # type: ignore[return-value]

    def _together(self, act: Callable[[], T] | None) -> T | None:
        """Acts, or waits for those who do; all end where one fails."""
        result, failure = None, None
        if act is not None:
            try:
                result = act()
            except Exception as error:
                failure = error
        failed = any(self.gather(failure is not None))
        if failure is not None:
            raise failure
        if failed:
            raise SystemExit(2)
        return result


ALONE = Team()


def find_team(processes: int | str, environment: Mapping[str, str] = os.environ) -> Team:
    """The team that torchrun or SLURM has started this process for; else it is alone, so far.

    Args:
        processes: The configuration's `trainer.processes`.
        environment: Variables that they tell it by.

    Raises:
        HnsegError: They have started another number, or not as many on each machine.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(environment[key]) for key in keys)
        starter, uneven, meeting = "torchrun", size % local_size, "env://"
    elif processes != 1 and "SLURM_STEP_ID" in environment and int(environment["SLURM_NTASKS"]) > 1:
        rank, size, local_rank = (int(environment[f"SLURM_{key}"]) for key in ("PROCID", "NTASKS", "LOCALID"))
        local_size, uneven = divmod(size, int(environment.get("SLURM_NNODES", 1)))
        starter, meeting = "SLURM", "slurm"
    else:
        return ALONE
    if uneven:
        raise HnsegError(f"{starter} started {size} processes, not as many on each machine; change that")
    if processes not in ("auto", size):
        raise HnsegError(
            f"trainer.processes={processes}, but {starter} started {size}; choose trainer=ddp, which takes "
            "those"
        )
    return Team(rank, size, local_rank, local_size, meeting)


def count_processes(trainer: Mapping[str, Any], team: Team) -> int:
    """How many processes are to train: those that were started, else one for each GPU, on the processor two.

    Args:
        trainer: The configuration's.
        team: Of this process.

    Raises:
        HnsegError: More than there are GPUs.
    """
    wanted = trainer["processes"]
    if team.size > 1 or wanted == 1:
        return team.size
    import torch

    from hnseg.devices import pick_device

    if pick_device(trainer["device"]).type == "cpu":
        return 2 if wanted == "auto" else wanted
    gpus = torch.cuda.device_count()
    if wanted != "auto" and wanted > gpus:
        raise HnsegError(
            f"trainer.processes={wanted}: each takes a GPU, and there are {gpus}; choose as many, or "
            "trainer.device=cpu"
        )
    return gpus if wanted == "auto" else wanted
