"""One whole-body case through the paper's ensemble: hnseg beside the authors' flow.

    python benchmarks/inference.py                   on the CPU; about 25 minutes on 2 cores, 12 GB of disk
    python benchmarks/inference.py --device cuda     on a GPU

A phantom of 512 x 512 x 300 voxels; localiser, coarse and ten fine networks with random weights, the same for
both (benchmarks/random_members.py), which find their class everywhere, so that both look at the same ROIs.
The peer (benchmarks/authors_flow.py) starts nnU-Net's command line three times and MONAI once and keeps
nothing from one case to the next, as the authors' container does, run once a case. On a CPU both frameworks
compute in float32, hnseg in bfloat16 where the processor has it. Whole processes, from their start to the
mask; memory is that of the largest process.

hnseg's rows: with the windows that nnU-Net and Auto3DSeg take, and with whole ROIs (windows=whole). A later
case is what each case after the first adds to a case list.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from random_members import STAGES, make_members, trained_folder

from hnseg.data.phantom import make_cohort
from hnseg.imaging.images import read_label, to_array

HERE = Path(__file__).resolve().parent
STEPS = ("read", "resample", "localiser", "coarse", "fine", "back", "write")
LATER = 1  # cases after the first


@dataclass
class Run:
    """One row of the table.

    Args:
        name: What ran.
        cold: Seconds from the process's start to the mask of one case.
        later: Seconds that a further case adds.
        gib: Peak resident memory of its largest process, over one case or several.
        steps: Seconds of each step of the cold case; the rest is start-up.
        mask: Its mask, which is the whole ROI.
    """

    name: str
    cold: float
    later: float
    gib: float
    steps: dict[str, float]
    mask: Path


def main() -> None:
    """Prints how long conversion takes, and a row for each way."""
    parser = argparse.ArgumentParser(description="Times inference beside the authors' flow.")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_inference"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    work, device = arguments.work.resolve(), arguments.device
    ct, pet = make(work, device)
    ways: dict[str, list[str]] = {"hnseg, the peer's windows": [], "hnseg, whole ROIs": ["windows=whole"]}
    peer = run_peer(work, ct, pet, device)
    print_table([peer])
    for name, options in ways.items():
        print_table([peer, run_hnseg(name, options, work, ct, pet, device)])


def make(work: Path, device: str) -> tuple[Path, Path]:
    """The case, the networks and the bundle, made once; prints how long conversion took."""
    if not (work / "made").exists():
        if work.exists():
            sys.exit(f"--work {work}: there, but not whole; remove it, or name another folder")
        make_cohort(work / "cases", 1, 0, size="full", workers=1)
        make_members(work / "nnUNet_results", work / "auto3dseg")
        for stage in STAGES:
            command("import-nnunet", trained_folder(work / "nnUNet_results", stage), f"stage={stage}", work)
        command("import-monai", work / "auto3dseg", "stage=fine", work)
        (work / "made").touch()
    if device == "cpu" and not (work / "converted").exists():
        seconds, gib = measured(
            [program("hnseg"), "export", work / "bundle", "--out", work / "converted", "--convert"]
        )
        print(f"export with conversion: {seconds:.0f} s, {gib:.1f} GiB, once for all cases", flush=True)
    ((ct,), (pet,)) = ([*(work / "cases").glob(f"*/*__{kind}.nii.gz")] for kind in ("CT", "PT"))
    return ct, pet


def command(verb: str, folder: Path, stage: str, work: Path) -> None:
    """Imports trained networks into the bundle."""
    subprocess.run([program("hnseg"), verb, folder, stage, "--out", work / "bundle"], check=True)


def program(name: str) -> Path:
    """A command of this environment."""
    return Path(sys.executable).with_name(name)


def run_peer(work: Path, ct: Path, pet: Path, device: str) -> Run:
    """The authors' flow; a later case costs it what the first one did."""
    out = work / "peer"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    paths = [ct, pet, work / "nnUNet_results", work / "auto3dseg", out]
    seconds, gib = measured([sys.executable, HERE / "authors_flow.py", *paths, device])
    steps = json.loads((out / "seconds.json").read_text())
    return Run("authors' flow", seconds, seconds, gib, steps, out / "mask.nii.gz")


def run_hnseg(name: str, options: Sequence[str], work: Path, ct: Path, pet: Path, device: str) -> Run:
    """One case, and one with others after it."""
    bundle = work / ("converted" if device == "cpu" else "bundle")
    fixed = [f"bundle={bundle}", f"trainer.device={device}", *options]
    if "windows=whole" in options:  # localiser and coarse networks are converted for their whole ROIs too
        converted, _ = infer(work, ct, pet, 1, [*fixed, "last_stage=coarse"])
        print(f"\nhead and coarse stage with conversion for whole ROIs: {converted:.0f} s, once\n")
    seconds, gib = infer(work, ct, pet, 1, fixed)
    with (work / "out" / "cases.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    steps = {step: float(row[f"{step}_s"] or 0) for step in STEPS}
    several, most = infer(work, ct, pet, 1 + LATER, fixed)
    return Run(
        name, seconds, (several - seconds) / LATER, max(gib, most), steps, work / "out" / "case0.nii.gz"
    )


def infer(work: Path, ct: Path, pet: Path, cases: int, options: Sequence[str]) -> tuple[float, float]:
    """Seconds and GiB of infer.py on the same case so many times."""
    shutil.rmtree(work / "out", ignore_errors=True)
    listed = "".join(f"case{n},{ct},{pet}\n" for n in range(cases))
    (work / "cases.csv").write_text(f"case_id,ct,pet\n{listed}")
    script = HERE.parent / "infer.py"
    return measured([sys.executable, script, f"cases={work / 'cases.csv'}", f"out={work / 'out'}", *options])


def measured(command: Sequence[str | Path]) -> tuple[float, float]:
    """Seconds of a process, and GiB of the largest of it and its children; its output goes nowhere.

    Raises:
        CalledProcessError: It failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return seconds, usage.ru_maxrss / 2**20


def print_table(runs: Sequence[Run]) -> None:
    """Markdown: seconds, ratios to the first, and how much both masks overlap."""
    peer, *others = runs
    if not others:
        print(f"| run | cold s | later s | GiB | {' | '.join(STEPS)} | start-up | same ROI, Dice |")
        print("| --- " * (len(STEPS) + 6) + "|")
        print(row(peer, ""))
    for run in others:
        true, found = (to_array(read_label(one.mask)) > 0 for one in (peer, run))
        dice = 2 * np.logical_and(true, found).sum() / (true.sum() + found.sum())
        print(row(run, f"{dice:.4f}"))
        ratios = (peer.cold / run.cold, peer.later / run.later, peer.gib / run.gib)
        print("| times less | " + " | ".join(f"{ratio:.1f}" for ratio in ratios) + " |", flush=True)


def row(run: Run, dice: str) -> str:
    """One line of the table."""
    steps = [run.steps.get(step, 0.0) for step in STEPS]
    cells = [run.cold, run.later, run.gib, *steps, run.cold - sum(steps)]
    return f"| {run.name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + f" | {dice} |"


if __name__ == "__main__":
    main()
