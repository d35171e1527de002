"""How much memory a training step takes: every stage, model and recipe, at the paper's patches and batches.

    python benchmarks/memory.py                 estimates, and measured where it fits this machine
    python benchmarks/memory.py --estimate      estimates alone, in half a minute and without a GPU

The estimate is what is alive at the worst moment of a step, taken with tensors that have no contents
(PyTorch's fake tensors, whose interface may change). It leaves out what no tensor holds: the convolutions'
workspaces, the allocator's gaps and, on a GPU, some hundred MB of context. Measured is the allocator's peak
on a GPU; on a CPU it is how far the resident memory of a process of its own rises.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnseg.card import plain
from hnseg.config import Node, compose_job
from hnseg.config import build as construct
from hnseg.devices import Precision, autocast, pick_device, pick_precision
from hnseg.models.nets import build, checkpoint_blocks

Config = dict[str, Any]

CONF = Path(__file__).resolve().parents[1] / "conf"
STAGES, RECIPES = ["localiser", "coarse", "fine"], ["paper", "authors", "best"]
GIB = 2**30
LIMIT_S = 360  # of one measurement
HEADROOM = 1.5  # a step is measured where the free memory holds its estimate so many times
SMALL = (64, 64, 64)  # a patch at which every network is measured, to judge the estimate
LEAST = (32, 64, 64)


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
        self.loss = construct(Node(**job.loss), "loss")
        self.optimizer = construct(Node(**job.optimizer["step"]), "optimizer.step")(self.network.parameters())

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


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process could take on a device at most, None where the system does not tell.

    On the processor they are the machine's, swap included, or those that its control group may have in all.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    machine = sum(int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "SwapFree"))
    return min([machine, *_group_limits()])


def _group_limits() -> list[int]:
    """Of memory: of this process's control groups, version 2 and 1, as seen from inside and outside."""
    groups = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    root = Path("/sys/fs/cgroup")
    files = [root / f"{group}/memory.max".strip("/") for group in ["", *groups]]
    files += [root / f"memory{group}/memory.limit_in_bytes" for group in ["", *groups]]
    texts = [file.read_text().strip() for file in files if file.exists()]
    return [int(text) for text in texts if text.isdigit()]


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


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, from the operation that makes them to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size


@dataclass(frozen=True)
class Job:
    """A stage, model and recipe, and what their steps are like."""

    stage: str
    model: str
    recipe: str
    step: StepJob

    @classmethod
    def compose(cls, stage: str, model: str, recipe: str) -> Job:
        """The job of `train.py stage=... model=... recipe=...`."""
        job = compose_job([f"stage={stage}", f"model={model}", f"recipe={recipe}"])
        network = job.card(job.input_spec).network
        return cls(stage, model, recipe, StepJob.of(plain(job), network, processes=1))


def jobs() -> list[Job]:
    """Every pair of stage and model that has a full-size training, in every recipe."""
    pairs = [path.stem.split("_", 1) for path in (CONF / "stage_model" / "full").glob("*.yaml")]
    recipes = [path.stem for path in (CONF / "recipe").glob("*.yaml")]
    found = [Job.compose(stage, model, recipe) for stage, model in pairs for recipe in recipes]
    return sorted(found, key=lambda job: (STAGES.index(job.stage), job.model, RECIPES.index(job.recipe)))


def measure(job: StepJob, device: torch.device, precision: Precision) -> str:
    """What two steps take in a process of their own, in GiB, or why that is not known."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**17)  # glibc gives freed tensors back at once
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(job, device, precision, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_S):
            return f"> {LIMIT_S // 60} min"
        return f"{ours.recv() / GIB:.2f}"
    except EOFError:  # it ended without a word
        return "out of memory"
    finally:
        process.kill()
        process.join()


def _measure(job: StepJob, device: torch.device, precision: Precision, result: Connection) -> None:
    os.nice(19)
    Step(replace(job, patch=LEAST, batch=1), device, precision)()  # libraries load at their first use
    baseline = _resident()
    step = Step(job, device, precision)
    step()
    step()
    if device.type == "cuda":
        result.send(torch.cuda.max_memory_allocated())
    else:
        result.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def full_size(device: torch.device, precision: Precision, measured: bool) -> Iterator[list[str]]:
    """The rows of the table at the paper's patches and batches, mixed precision in the estimate."""
    heads = "stage, model, recipe, channels, patch, batch, parameters, between steps, peak, measured"
    yield heads.split(", ")
    for job in jobs():
        needs = estimate(job.step, "bfloat16", device)
        # A CPU takes minutes over a step at full size: there the default recipe stands for all.
        wanted = measured and (device.type == "cuda" or job.recipe == "paper")
        # A GPU refuses what it cannot hold; a CPU's machine would stall.
        fits = device.type == "cuda" or HEADROOM * estimate(job.step, precision, device).peak < (
            free_memory(device) or 0
        )
        yield [
            job.stage,
            job.model,
            job.recipe,
            str(job.step.network["in_channels"]),
            " × ".join(map(str, job.step.patch)),
            str(job.step.batch),
            f"{needs.parameters / 1e6:.1f} M",
            f"{needs.between / GIB:.2f}",
            f"{needs.peak / GIB:.2f}",
            (measure(job.step, device, precision) if fits else "too large") if wanted else "–",
        ]


def small(device: torch.device) -> Iterator[list[str]]:
    """Estimated beside measured at a small patch, for every network, in two precisions."""
    yield ["stage", "model", "batch", "float32", "measured", "bfloat16", "measured"]
    for job in jobs():
        if job.recipe == "paper":
            step = replace(job.step, patch=SMALL)
            cells = [job.stage, job.model, str(step.batch)]
            for precision in ("float32", "bfloat16"):
                cells += [
                    f"{estimate(step, precision, device).peak / GIB:.2f}",
                    measure(step, device, precision),
                ]
            yield cells


def show(title: str, rows: Iterator[list[str]]) -> None:
    """Prints a Markdown table row by row, as they come."""
    print(f"\n{title}\n")
    for n, row in enumerate(rows):
        print(f"| {' | '.join(row)} |", flush=True)
        if n == 0:
            print(f"|{' --- |' * len(row)}")


def main() -> None:
    """Prints the tables, in GiB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--estimate", action="store_true", help="measure nothing")
    measured = not parser.parse_args().estimate
    device = pick_device()
    precision = pick_precision(device)
    if measured:
        name = (
            torch.cuda.get_device_name()
            if device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        show(f"Patch {SMALL}, GiB, measured on {name}:", small(device))
    show(f"Full size, GiB, measured in {precision}:", full_size(device, precision, measured))


if __name__ == "__main__":
    main()
