"""How many actors a Ray cluster holds, and what of it each may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hnseg.errors import HnsegError


@dataclass(frozen=True)
class Share:
    """What each actor gets.

    Args:
        workers: Number of actors.
        device: Where their networks run.
        gpus: GPUs that Ray keeps for an actor.
        cpus: CPUs that Ray keeps for an actor.
        threads: Of its networks on the CPU.
    """

    workers: int
    device: str
    gpus: int
    cpus: int
    threads: int


def share(nodes: Sequence[Mapping[str, float]], device: str = "auto", workers: int | None = None) -> Share:
    """A GPU for each actor where there are GPUs, else the CPUs in equal parts.

    Args:
        nodes: The resources of each node as Ray has them, CPU and GPU among them.
        device: auto, cpu or cuda.
        workers: Number of actors; None is one a GPU, or on CPUs one a node.

    Raises:
        HnsegError: No number of actors, more than there is room for, or cuda without a GPU.
    """
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise HnsegError(f"engine.workers={workers}: give a number of 1 or more, or null")
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if device == "cuda" and not any(gpus):
        raise HnsegError("trainer.device=cuda, but no node of the Ray cluster has a GPU; choose auto or cpu")
    if device != "cpu" and any(gpus):
        _require_room(workers, sum(gpus), "GPUs")
        threads = min(cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu)
        return Share(workers or sum(gpus), "cuda", gpus=1, cpus=0, threads=max(threads, 1))
    _require_room(workers, sum(cpus), "CPUs")
    workers = workers or sum(count > 0 for count in cpus)
    # The most threads with which all of them find room.
    each = next(n for n in range(max(cpus), 0, -1) if sum(count // n for count in cpus) >= workers)
    return Share(workers, "cpu" if device == "auto" else device, gpus=0, cpus=each, threads=each)


def _require_room(workers: int | None, room: int, what: str) -> None:
    if (workers or 1) > room:
        raise HnsegError(f"engine.workers={workers}: the Ray cluster has {room} {what}; set it to no more")
