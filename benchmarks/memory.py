"""How much memory a training step takes: every stage, model and recipe, at the paper's patches and batches.

    python benchmarks/memory.py                 estimates, and measured where it fits this machine
    python benchmarks/memory.py --estimate      estimates alone, in half a minute and without a GPU

The estimate takes the step itself (forward, loss, backward, clip, optimiser; twice, for the optimiser's state
exists from the second step on) with tensors that have no contents, and adds up what is alive at the worst
moment. It leaves out what no tensor holds: the convolutions' workspaces, the allocator's gaps and, on a GPU,
some hundred MB of context. Measured is the allocator's peak on a GPU; on a CPU it is how far the resident
memory of a process of its own rises.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from live_memory import LiveMemory
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses import FakeTensorMode

from hnseg.hardware import Precision, autocast, pick_device, pick_precision
from hnseg.hydra_app import compose_job
from hnseg.models.nets import build

CONF = Path(__file__).resolve().parents[1] / "conf"
STAGES, RECIPES = ["head", "coarse", "fine"], ["paper", "authors", "best"]
GIB = 2**30
LIMIT_S = 360  # of one measurement
HEADROOM = 1.5  # a step is measured where the free memory holds its estimate so many times
SMALL = (64, 64, 64)  # a patch at which every network is measured, to judge the estimate
LEAST = (32, 64, 64)


@dataclass(frozen=True)
class Job:
    """What the memory of a training step depends on: patch (z, y, x), batch, network, loss, optimiser."""

    stage: str
    model: str
    recipe: str
    network: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    patch: tuple[int, ...]
    batch: int
    averaged: bool  # whether a running average of the weights is kept

    @classmethod
    def compose(cls, stage: str, model: str, recipe: str) -> Job:
        """The job of `train.py stage=... model=... recipe=...`."""
        cfg = compose_job([f"stage={stage}", f"model={model}", f"recipe={recipe}"])
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        training = config["training"]
        network = {
            "architecture": config["model"]["architecture"],
            "in_channels": (3 if config["cte"] else 1) + (stage != "head"),
            "out_channels": len(config["stage"]["classes"]) + 1,
            **config["model"]["settings"],
        }
        return cls(
            stage,
            model,
            recipe,
            network,
            config["loss"],
            config["optimizer"],
            tuple(training["patch"]),
            training["batch_size"],
            training["ema"] is not None,
        )


def jobs() -> list[Job]:
    """Every pair of stage and model that has a full-size training, in every recipe."""
    pairs = [path.stem.split("_", 1) for path in (CONF / "stage_model" / "full").glob("*.yaml")]
    recipes = [path.stem for path in (CONF / "recipe").glob("*.yaml")]
    found = [Job.compose(stage, model, recipe) for stage, model in pairs for recipe in recipes]
    return sorted(found, key=lambda job: (STAGES.index(job.stage), job.model, RECIPES.index(job.recipe)))


class Step:
    """A training step as `hnseg.models.module` and Lightning take it, on a batch of zeros."""

    def __init__(self, job: Job, device: torch.device, precision: Precision) -> None:
        self.device, self.precision, self.clip = device, precision, job.optimizer["clip"]
        with device:
            self.network = build(**job.network)
            self.image = torch.zeros(job.batch, job.network["in_channels"], *job.patch)
            self.label = torch.zeros(job.batch, *job.patch, dtype=torch.long)
        for parameter in self.network.parameters():  # network.to(memory_format=...), for fake tensors too
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        self.average = [p.detach().clone() for p in self.network.parameters()] if job.averaged else []
        self.loss = instantiate(job.loss)
        self.optimizer = instantiate(job.optimizer["step"])(self.network.parameters())

    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            image = self.image.contiguous(memory_format=torch.channels_last_3d)
            loss = self.loss(self.network(image), self.label)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()


@dataclass(frozen=True)
class Need:
    """Number of parameters, and bytes: what stays between steps, and what is alive at the worst moment."""

    parameters: int
    between: int
    peak: int


def estimate(job: Job, precision: Precision) -> Need:
    """What a step needs, by tensors without contents."""
    # Fake tensors of a GPU need one in the backward pass; the CPU's make and keep the same ones.
    with FakeTensorMode(), LiveMemory() as live:
        step = Step(job, torch.device("cpu"), precision)
        step()
        step()
        parameters = sum(p.numel() for p in step.network.parameters())
        return Need(parameters, live.now, live.peak)


def measure(job: Job, device: torch.device, precision: Precision) -> str:
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


def _measure(job: Job, device: torch.device, precision: Precision, result: Connection) -> None:
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


def _free_memory() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def full_size(device: torch.device, precision: Precision, measured: bool) -> Iterator[list[str]]:
    """The rows of the table at the paper's patches and batches, mixed precision in the estimate."""
    heads = "stage, model, recipe, channels, patch, batch, parameters, between steps, peak, measured"
    yield heads.split(", ")
    for job in jobs():
        need = estimate(job, "bfloat16")
        # A CPU takes minutes over a step at full size: there the default recipe stands for all.
        wanted = measured and (device.type == "cuda" or job.recipe == "paper")
        # A GPU refuses what it cannot hold; a CPU's machine would stall.
        fits = device.type == "cuda" or HEADROOM * estimate(job, precision).peak < _free_memory()
        yield [
            job.stage,
            job.model,
            job.recipe,
            str(job.network["in_channels"]),
            " × ".join(map(str, job.patch)),
            str(job.batch),
            f"{need.parameters / 1e6:.1f} M",
            f"{need.between / GIB:.2f}",
            f"{need.peak / GIB:.2f}",
            (measure(job, device, precision) if fits else "too large") if wanted else "–",
        ]


def small(device: torch.device) -> Iterator[list[str]]:
    """Estimated beside measured at a small patch, for every network, in two precisions."""
    yield ["stage", "model", "batch", "float32", "measured", "bfloat16", "measured"]
    for job in jobs():
        if job.recipe == "paper":
            job = replace(job, patch=SMALL)
            cells = [job.stage, job.model, str(job.batch)]
            for precision in ("float32", "bfloat16"):
                cells += [f"{estimate(job, precision).peak / GIB:.2f}", measure(job, device, precision)]
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
