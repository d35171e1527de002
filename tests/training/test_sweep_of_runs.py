"""Sweeps of real, tiny trainings: killed, resumed, and kept apart."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from entry import ROOT, hnseg, run, tiny, write_cohort

pytestmark = pytest.mark.slow

ARM = Path("hecktor") / "fine_resenc_cte"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


def sweep(cohort: Path, runs: Path, *more: str) -> list[str]:
    brief = ["training.epochs=40", "training.iterations=2"]
    return ["sweeps=folds", "stage=fine", *tiny("resenc", cohort, runs), *brief, "fold=0-1", *more]


def wandb_ids(run_dir: Path) -> set[str]:
    return {path.name.rpartition("-")[2] for path in run_dir.glob("wandb/offline-run-*")}


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def test_a_killed_sweep_started_again_finishes_with_the_same_runs(cohort: Path, tmp_path: Path) -> None:
    arguments = [*sweep(cohort, tmp_path / "runs"), "logger=wandb"]
    first, second = (tmp_path / "runs" / ARM / f"fold_{fold}" for fold in (0, 1))
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(second / "last.ckpt", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (second / "score.json").exists()
    epoch = torch.load(second / "last.ckpt", weights_only=True)["epoch"]
    kept = (first / "last.ckpt").read_bytes()

    listed = hnseg("runs", "--sort", "name", "--json", "runs.json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    states = [one["state"] for one in json.loads((tmp_path / "runs.json").read_text())["runs"]]
    assert states == ["finished", "stopped"]

    again = run("train.py", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 1
    assert (first / "last.ckpt").read_bytes() == kept
    assert f"epoch {epoch}/" not in again.stderr
    assert sorted(path.name for path in (tmp_path / "runs" / ARM).iterdir()) == ["fold_0", "fold_1"]
    ids = [wandb_ids(folder) for folder in (first, second)]
    assert [len(one) for one in ids] == [1, 1]
    assert ids[0] != ids[1]

    third = run("train.py", *arguments, cwd=tmp_path)
    assert third.stdout.count("finished before") == 2


def test_jobs_that_share_a_folder_do_not_replace_each_others_runs(cohort: Path, tmp_path: Path) -> None:
    brief = [*tiny("resenc", cohort, tmp_path / "runs"), "seed=0,1", "-m", "stage=fine", "logger=csv"]
    done = run("train.py", *brief, "overwrite=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "another job of this sweep trains there" in done.stderr
    assert [path.parent.name for path in tmp_path.rglob("score.json")] == ["fold_0"]
    apart = run("train.py", *brief, "arm=seed_${seed}", cwd=tmp_path)
    assert apart.returncode == 0, apart.stderr
    assert len(list(tmp_path.rglob("score.json"))) == 3
