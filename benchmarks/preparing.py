"""Preparing a cohort for its three stages: hnseg beside nnU-Net's preprocessing.

    python benchmarks/preparing.py [--cases 8] [--work FOLDER]       about 5 minutes on 2 cores, 1 GB of disk

Phantoms of 512 x 512 x 300 voxels, as files of a scanner. The peer is the authors' flow: crops of each stage
by SimpleITK as NIfTI, from which nnU-Net's own preprocessor makes what its trainer reads; its fingerprint and
plans are not counted. Nothing is resampled there once more: each crop has its stage's spacing. hnseg takes
the same ROIs from the same files to the cache that its trainings read. Both have as many processes as the
machine has cores, and start them within the time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import SimpleITK as sitk
from authors_flow import COARSE, FINE, HEAD, centroid, enhanced, sample, scaled, window

from hnseg.config import compose_job
from hnseg.data.phantom import make_cohort
from hnseg.data.prepare import prepare
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.grid import Grid, coarse_grid, top_of_scan_grid

STAGES = {"localiser": "plainconv", "coarse": "plainconv", "fine": "resenc"}
CORES = os.cpu_count() or 1


def main() -> None:
    """Prints a row for each stage, and their sum."""
    parser = argparse.ArgumentParser(description="Times preparing a cohort beside nnU-Net's preprocessing.")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--work", type=Path, help="keeps the phantoms for another time")
    parser.add_argument("--only", nargs=3, metavar=("WHO", "STAGE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        who, stage, out = arguments.only
        print(json.dumps({"hnseg": run_hnseg, "peer": run_peer}[who](arguments.work, stage, Path(out))))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).resolve()
        make_cohort(work / "cases", arguments.cases, 0, size="full")
        print(
            "| stage | crops, cases a minute | nnU-Net | both | hnseg | times faster | than nnU-Net alone |"
        )
        print("| --- " * 7 + "|")
        total = dict.fromkeys(("crops", "nnU-Net", "hnseg"), 0.0)
        for stage in STAGES:
            seconds = {**timed("peer", work, stage), **timed("hnseg", work, stage)}
            total = {name: total[name] + seconds[name] for name in total}
            print(row(stage, seconds, arguments.cases), flush=True)
        print(row("all", total, arguments.cases))


def row(stage: str, seconds: dict[str, float], cases: int) -> str:
    """Cases a minute, and ratios."""
    both = seconds["crops"] + seconds["nnU-Net"]
    times = (seconds["crops"], seconds["nnU-Net"], both, seconds["hnseg"])
    rates = [f"{60 * cases / one:.1f}" for one in times]
    ratios = [f"{one / seconds['hnseg']:.1f}" for one in (both, seconds["nnU-Net"])]
    return f"| {' | '.join([stage, *rates, *ratios])} |"


def timed(who: str, work: Path, stage: str) -> dict[str, float]:
    """Seconds of one of both, in a process of its own.

    Raises:
        CalledProcessError: It failed.
    """
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [sys.executable, __file__, "--work", work, "--only", who, stage, out]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        return json.loads(done.stdout.splitlines()[-1])


def run_hnseg(work: Path, stage: str, out: Path) -> dict[str, float]:
    """From the files to the cache."""
    cases = read_cases(work / "cases")
    job = compose_job([f"stage={stage}", f"model={STAGES[stage]}"])
    made, spec = job.placed_stage, job.input_spec
    settings: dict[str, Any] = {"sampling": spec.sampling, "modalities": spec.modalities}
    settings["margin_mm"] = job.jitter_mm
    start = perf_counter()
    prepare(cases, made, out, heads=work / "cases" / "heads", workers=CORES, **settings)
    return {"hnseg": perf_counter() - start}


def run_peer(work: Path, stage: str, out: Path) -> dict[str, float]:
    """From the files to crops, and from crops to what nnU-Net trains on."""
    folders = {name: out / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    os.environ |= {name: str(folder) for name, folder in folders.items()}
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    dataset = folders["nnUNet_raw"] / "Dataset001_ROI"
    for name in ("imagesTr", "labelsTr"):
        (dataset / name).mkdir(parents=True)
    cases = read_cases(work / "cases")
    start = perf_counter()
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        channels = list(
            pool.map(partial(crop, stage=stage, heads=work / "cases" / "heads", dataset=dataset), cases)
        )
    crops = perf_counter() - start
    (dataset / "dataset.json").write_text(json.dumps(described(channels[0], len(cases))))
    nnunet.extract_fingerprint_dataset(1, num_processes=CORES)
    nnunet.plan_experiment_dataset(1)
    start = perf_counter()
    nnunet.preprocess_dataset(
        1, configurations=["3d_fullres"], num_processes=[CORES], show_progress_bar=False
    )
    return {"crops": crops, "nnU-Net": perf_counter() - start}


def described(channels: int, cases: int) -> dict[str, Any]:
    """What nnU-Net asks of a dataset."""
    return {
        "channel_names": {str(n): f"channel {n}" for n in range(channels)},
        "labels": {"background": 0, "first": 1, **({"second": 2} if channels > 1 else {})},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def crop(case: Case, stage: str, heads: Path, dataset: Path) -> int:
    """Writes a stage's channels and labels of one case as nnU-Net reads them; returns how many channels."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    ct, pet = (sitk.ReadImage(str(file), sitk.sitkFloat32) for file in (case.ct, case.pet))
    head = sitk.ReadImage(str(heads / f"{case.case_id}.nii.gz"))
    top = top_of_scan_grid(ct, *HEAD)
    ct_crop = sample(ct, top, -1000.0)
    if stage == "localiser":
        grid, label, channels = top, head, [window(ct_crop)]
    else:
        label = sitk.ReadImage(str(case.label))
        grid = coarse_grid(head, *COARSE) if stage == "coarse" else Grid.centred(centroid(label), *FINE)
        low, high = scaled(ct_crop, sample(pet, top, 0.0), grid)
        channels = [low, high] if stage == "coarse" else [*enhanced(low), high]
    for n, channel in enumerate(channels):
        sitk.WriteImage(channel, str(dataset / "imagesTr" / f"{case.case_id}_{n:04}.nii.gz"))
    like = channels[0]
    labels = sitk.Resample(label, like, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    sitk.WriteImage(labels, str(dataset / "labelsTr" / f"{case.case_id}.nii.gz"))
    return len(channels)


if __name__ == "__main__":
    main()
