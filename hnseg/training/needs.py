"""How much memory and disk a training takes, known before it begins."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from hnseg.construct import construct
from hnseg.devices import Precision, autocast, free_memory
from hnseg.errors import HnsegError
from hnseg.models.nets import build, checkpoint_blocks
from hnseg.training.live_memory import LiveMemory
from hnseg.training.run_folder import RunFolder

Config = dict[str, Any]


@dataclass(frozen=True)
class StepJob:
    """What the memory of a training step depends on.

    Args:
        network: For `hnseg.models.nets.build`.
        loss: The configuration's.
        optimizer: The configuration's `step` and `clip`.
        patch: Shape (z, y, x).
        batch: Patches that go through the network together.
        averaged: Whether a running average of the weights is kept.
        checkpointing: Whether activations are computed twice instead of kept.
    """

    network: Config
    loss: Config
    optimizer: Config
    patch: tuple[int, ...]
    batch: int
    averaged: bool
    checkpointing: bool = False

    @classmethod
    def of(cls, config: Config, network: Config, processes: int) -> StepJob:
        """What each of some processes takes in the steps of a composed configuration."""
        training, trainer = config["training"], config["trainer"]
        return cls(
            network,
            config["loss"],
            config["optimizer"],
            tuple(training["patch"]),
            training["batch_size"] // trainer["accumulate"] // processes,
            training["ema"] is not None,
            trainer["checkpointing"],
        )


class Step:
    """A training step as `hnseg.models.module` and Lightning take it, on a batch of zeros."""

    def __init__(self, job: StepJob, device: torch.device, precision: Precision) -> None:
        self.device, self.precision, self.clip = device, precision, job.optimizer["clip"]
        with device:
            self.network = build(**job.network)
            self.image = torch.zeros(job.batch, job.network["in_channels"], *job.patch)
            self.label = torch.zeros(job.batch, *job.patch, dtype=torch.long)
        if job.checkpointing:
            checkpoint_blocks(self.network)
        for parameter in self.network.parameters():  # network.to(memory_format=...), for fake tensors too
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        self.average = [p.detach().clone() for p in self.network.parameters()] if job.averaged else []
        self.loss = construct(job.loss, "loss")
        self.optimizer = construct(job.optimizer["step"], "optimizer.step")(self.network.parameters())

    def __call__(self) -> None:
        """Forward, loss, backward, clip, update."""
        with autocast(self.device, self.precision):
            image = self.image.contiguous(memory_format=torch.channels_last_3d)
            loss = self.loss(self.network(image), self.label)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()


@dataclass(frozen=True)
class Needs:
    """What a training takes, in bytes but for the first.

    Args:
        parameters: Their number.
        between: Memory that stays taken between steps.
        peak: Memory that is taken at the worst moment of a step. What no tensor holds comes on top: the
            convolutions' workspaces, the allocator's gaps and, on a GPU, some hundred MB of context.
        checkpoint: Disk that each checkpoint takes.
    """

    parameters: int
    between: int
    peak: int
    checkpoint: int


def estimate(job: StepJob, precision: Precision, device: torch.device) -> Needs:
    """What a training needs, by two steps of tensors without contents: the optimiser's state exists from
    the second on. Takes a second or two, and no memory.

    Args:
        job: What its steps are like.
        precision: Their arithmetic.
        device: Where they are to run; it need not be there.
    """
    # Fake tensors of a GPU need one in the backward pass; the CPU's make and keep about the same.
    with FakeTensorMode(), LiveMemory() as live:
        step = Step(job, torch.device("cpu"), precision)
        step()
        step()
        parameters = sum(p.numel() for p in step.network.parameters())
        state = [tensor for one in step.optimizer.state.values() for tensor in one.values()]
        stored = [*step.network.parameters(), *step.average, *state]
        checkpoint = sum(t.numel() * t.element_size() for t in stored if isinstance(t, torch.Tensor))
        return Needs(parameters, live.now, live.peak, checkpoint)


def require_memory(
    job: StepJob, needs: Needs, device: torch.device, precision: Precision, sharers: int = 1
) -> None:
    """Refuses a training whose steps cannot fit the memory.

    Args:
        job: Of one process.
        needs: Of it.
        device: Where it is to run.
        precision: In which arithmetic.
        sharers: Processes that share the memory: one a GPU, on the processor all of the machine.

    Raises:
        HnsegError: A step takes more than is free; with what would take less.
    """
    free = free_memory(device)
    if free is None or needs.peak * sharers <= free:
        return
    ways = {}
    if not job.checkpointing:
        ways["trainer.checkpointing=true"] = replace(job, checkpointing=True)
    if job.batch > 1:
        ways["one patch at a time (trainer.accumulate)"] = replace(job, batch=1)
        ways["both"] = replace(job, batch=1, checkpointing=True)
    told = [
        f"{way} takes {size(estimate(other, precision, device).peak * sharers)}"
        for way, other in ways.items()
    ]
    where = "on the GPU" if device.type == "cuda" else "of memory"
    raise HnsegError(
        f"training.patch={list(job.patch)}: a step takes {size(needs.peak * sharers)} at least, and "
        f"{size(free)} {where} are free; {', '.join([*told, 'a smaller patch less'])}"
    )


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def require_disk(needs: Needs, folder: RunFolder) -> None:
    """Refuses a training whose checkpoints cannot fit the disk: the best, the last two, and one more while
    it is written.

    Raises:
        HnsegError: They take more than is free.
    """
    held = sum(path.stat().st_size for path in folder.checkpoints if path.exists())
    checkpoints = len(folder.checkpoints) + 1
    needed = checkpoints * needs.checkpoint - held
    existing = next(path for path in (folder.path, *folder.path.absolute().parents) if path.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise HnsegError(
            f"{folder.path}: {checkpoints} checkpoints of {size(needs.checkpoint)} take {size(needed)}, and "
            f"{size(free)} are free there; make room, or choose another runs=FOLDER"
        )
