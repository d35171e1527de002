"""What a case costs beside its networks, which answer at once here.

    python benchmarks/overhead.py     on the case and the bundle that benchmarks/inference.py has made

Read and checked, placed, resampled, shown window by window, fused, brought back and measured; the stand-ins
for the networks find a ball in the middle of whatever they are shown. Writing, which takes a few hundredths
of a second, is left out. Seconds on the CPU, medians of five cases after the first, in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from hnseg.imaging.audit import check_case
from hnseg.imaging.case import Case
from hnseg.imaging.suv import read_scan
from hnseg.inference.backends import Networks
from hnseg.inference.cascade import Cascade
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member

CPU, CASES = torch.device("cpu"), 5
RADIUS = 0.4  # of the ball, in half sides of the window


class Instant(Networks):
    """Networks that have made up their mind."""

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """(1, C, z, y, x) → (1, K, z, y, x), the first class in a ball, background elsewhere."""
        return lambda image: ball(member.card.network["out_channels"], tuple(image.shape[2:]))


@cache
def ball(classes: int, shape: tuple[int, ...]) -> Tensor:
    """The logits, made once."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = torch.stack([axis.square() for axis in axes]).sum(0) < RADIUS**2
    logits = torch.zeros((1, classes, *shape))
    logits[:, 1] = torch.where(inside, 5.0, -5.0)
    return logits


def main() -> None:
    """Prints a row of seconds."""
    parser = argparse.ArgumentParser(description="Times what a case costs beside its networks.")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_inference"))
    work: Path = parser.parse_args().work
    if not (work / "bundle").exists():
        parser.error(f"{work}: no bundle there; run benchmarks/inference.py first")
    ((ct,), (pet,)) = ([*(work / "cases").glob(f"*/*__{kind}.nii.gz")] for kind in ("CT", "PT"))
    cascade = Cascade(Bundle.load(work / "bundle"), Instant(CPU, "float32"))
    rows = [seconds(cascade, Case("case", ct, pet)) for _ in range(1 + CASES)]
    middle = {step: median(row[step] for row in rows[1:]) for step in rows[0]}
    print("| " + " | ".join(middle) + " |\n" + "| --- " * len(middle) + "|")
    print("| " + " | ".join(f"{value:.2f}" for value in middle.values()) + " |")


def seconds(cascade: Cascade, case: Case) -> dict[str, float]:
    """Of one case, by step; the stages' are those of windows and fusion."""
    start = perf_counter()
    images = read_scan(case)
    check_case(*images)
    read = perf_counter() - start
    steps = {"read": read} | cascade(*images, case.case_id).seconds
    return {"all": perf_counter() - start, **steps}


if __name__ == "__main__":
    main()
