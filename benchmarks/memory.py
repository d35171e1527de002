"""How much memory a training step takes: every stage, model and recipe, at the paper's patches and batches.

    python benchmarks/memory.py                 estimates, and measured where it fits this machine
    python benchmarks/memory.py --estimate      estimates alone, in half a minute and without a GPU

The estimate is that of `hnseg.training.needs`, by which train.py refuses what cannot fit: what is alive at
the worst moment of the step itself, taken with tensors that have no contents. It leaves out what no tensor
holds: the convolutions' workspaces, the allocator's gaps and, on a GPU, some hundred MB of context. Measured
is the allocator's peak on a GPU; on a CPU it is how far the resident memory of a process of its own rises.
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
from omegaconf import OmegaConf

from hnseg.app import compose_job
from hnseg.devices import Precision, free_memory, pick_device, pick_precision
from hnseg.job import describe, make_input, make_stage
from hnseg.training.needs import Step, StepJob, estimate

CONF = Path(__file__).resolve().parents[1] / "conf"
STAGES, RECIPES = ["head", "coarse", "fine"], ["paper", "authors", "best"]
GIB = 2**30
LIMIT_S = 360  # of one measurement
HEADROOM = 1.5  # a step is measured where the free memory holds its estimate so many times
SMALL = (64, 64, 64)  # a patch at which every network is measured, to judge the estimate
LEAST = (32, 64, 64)


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
        cfg = compose_job([f"stage={stage}", f"model={model}", f"recipe={recipe}"])
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        made = make_stage(config)
        network = describe(config, made, make_input(config, made))["network"]
        return cls(stage, model, recipe, StepJob.of(config, network, processes=1))


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
