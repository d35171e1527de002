"""Training steps: hnseg beside nnU-Net and Auto3DSeg, each in a process of its own, one after the other.

    python benchmarks/training.py                   on the CPU, 64 x 64 x 64, batch 2; about 8 minutes
    python benchmarks/training.py --device cuda     on a GPU, the paper's patches and batches

Every framework has its own loaders, augmentation, loss, optimiser and arithmetic, on patients in its own
format: nnU-Net and MONAI on noise of 144 x 144 x 144 voxels (benchmarks/peer_steps.py), hnseg on phantoms
(`hnseg profile`). A step is what lies between two batches. On a CPU the peers compute in float32, hnseg in
bfloat16 where the processor has it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from hnseg.data.phantom import make_cohort

HERE = Path(__file__).resolve().parent


class Row(NamedTuple):
    """A network, and the size of its patches (in voxels, cubes) and batches."""

    peer: str
    stage: str
    model: str
    patch: int
    batch: int


SMALL = [
    Row("nnU-Net", "coarse", "plainconv", 64, 2),
    Row("nnU-Net", "fine", "resenc", 64, 2),
    Row("Auto3DSeg", "fine", "segresnet", 64, 2),
]
PAPER = [
    Row("nnU-Net", "coarse", "plainconv", 128, 2),
    Row("nnU-Net", "fine", "resenc", 160, 4),
    Row("Auto3DSeg", "fine", "segresnet", 144, 1),
]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Times training steps beside nnU-Net's and Auto3DSeg's.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, help="batches measured; default 10 on a CPU, 50 on a GPU")
    parser.add_argument("overrides", nargs="*", help="of hnseg, for instance augment.device=cuda")
    arguments = parser.parse_args()
    device, steps = arguments.device, arguments.steps or (10 if arguments.device == "cpu" else 50)
    print(
        "| network | patch | batch | peer | s a step | waiting | GiB | hnseg | waiting | GiB | times faster |"
    )
    print("| --- " * 11 + "|")
    with tempfile.TemporaryDirectory() as folder:
        make_cohort(Path(folder) / "phantoms", 4, 0)
        for row in SMALL if device == "cpu" else PAPER:
            peer, ours = (
                run_peer(row, steps, device),
                run_hnseg(row, steps, device, folder, arguments.overrides),
            )
            line = [row.model, f"{row.patch}³", row.batch, row.peer, *cells(peer), *cells(ours)]
            print("| " + " | ".join(map(str, line)) + f" | {peer['step'] / ours['step']:.1f} |", flush=True)
    cores = f"{torch.get_num_threads()} cores of {platform.machine()}"
    name = torch.cuda.get_device_name() if device == "cuda" else cores
    print(f"\n{name}, torch {torch.__version__}. GiB: of tensors on the GPU, or of the training process.")


def cells(figures: dict[str, Any]) -> list[str]:
    """Cells of one framework."""
    return [f"{figures['step']:.3f}", f"{figures['wait'] / figures['step']:.0%}", f"{figures['gib']:.1f}"]


def run_peer(row: Row, steps: int, device: str) -> dict[str, Any]:
    """Medians of the peer's steps; its share of waiting is that of all of them."""
    arguments = [row.model, row.patch, row.batch, steps, device]
    found = output([sys.executable, HERE / "peer_steps.py", *arguments])
    measured = json.loads(found.splitlines()[-1])
    step = median(measured["step"])
    return {
        "step": step,
        "wait": step * sum(measured["wait"]) / sum(measured["step"]),
        "gib": measured["gpu_gib"] or measured["gib"],
    }


def run_hnseg(row: Row, steps: int, device: str, folder: str, overrides: list[str]) -> dict[str, Any]:
    """Means over hnseg's steps: on a GPU they overlap."""
    size = [f"training.patch=[{row.patch},{row.patch},{row.patch}]", f"training.batch_size={row.batch}"]
    data = [f"data.root={folder}/phantoms", f"data.cache={folder}/cache", "data.folds=2", "cte=false"]
    job = [f"stage={row.stage}", f"model={row.model}", f"trainer.device={device}", *size, *data, *overrides]
    result = Path(folder) / "profile.json"
    output([sys.executable, "-m", "hnseg", "profile", *job, "--steps", steps, "--json", result])
    found = json.loads(result.read_text())
    seconds = found["seconds"]
    total = sum(seconds.values()) / found["steps"]
    gib = (found["gpu_peak_mib"] or found["peak_mib"]) / 1024
    return {"step": total, "wait": seconds["wait"] / found["steps"], "gib": gib}


def output(command: list[Any]) -> str:
    """What a command prints; what it complains of is seen where it fails.

    Raises:
        CalledProcessError: It failed.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
