"""Sweeps of real, tiny trainings whose jobs run elsewhere: on Ray, in joblib's processes, under SLURM."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
import torch
from entry import ROOT, run, tiny, write_cohort

pytestmark = pytest.mark.slow

ARM = "fine_plainconv"
ALONE = ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := slurm.lacking():
        pytest.skip(reason)
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment


def command(cohort: Path, runs: Path, epochs: int = 2) -> list[str]:
    length = [f"training.epochs={epochs}", "training.iterations=2", "trainer.deterministic=true"]
    return ["stage=fine", *tiny("plainconv", cohort, runs), *length, "logger=csv", "fold=0-1", "-m"]


@pytest.fixture(scope="module")
def one_by_one(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of Hydra's own launcher."""
    folder = tmp_path_factory.mktemp("basic")
    done = run("train.py", *command(cohort, folder / "runs"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "hecktor" / ARM


def assert_same_runs(arm: Path, expected: Path) -> None:
    """The same weights and scores of both folds, to the last bit."""
    for fold in ("fold_0", "fold_1"):
        assert (arm / fold / "score.json").read_text() == (expected / fold / "score.json").read_text()
        assert_same_weights(arm / fold, expected / fold)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (one, other)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "settings",
    [["joblib", "hydra.launcher.n_jobs=2"], ["ray", *ALONE]],
    ids=["joblib", "ray"],
)
@pytest.mark.usefixtures("only_cluster")
def test_jobs_of_other_processes_train_the_same(
    settings: list[str], cohort: Path, one_by_one: Path, tmp_path: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{settings[0]}_launcher", reason="pip install hnseg[launchers]")
    swept = [*command(cohort, tmp_path / "runs"), f"hydra/launcher={settings[0]}", *settings[1:]]
    done = run("train.py", *swept, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_runs(tmp_path / "runs" / "hecktor" / ARM, one_by_one)


def test_jobs_queue_for_two_cores_and_all_finish(
    cohort: Path, cluster: dict[str, str], one_by_one: Path, tmp_path: Path
) -> None:
    names = ["a", "b", "c"]
    arguments = [*command(cohort, tmp_path / "runs"), f"name={','.join(names)}"]
    place = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
    done = run("train.py", *arguments, *place, cwd=tmp_path, **cluster)
    assert done.returncode == 0, done.stderr
    for name in names:
        assert_same_runs(tmp_path / "runs" / name / ARM, one_by_one)


def test_the_tasks_of_one_job_train_together(
    cohort: Path, cluster: dict[str, str], one_by_one: Path, tmp_path: Path
) -> None:
    """What SLURM has started is the team, one process a task."""
    place = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
    team = ["hydra.launcher.tasks_per_node=2", "trainer.processes=auto"]
    done = run("train.py", *command(cohort, tmp_path / "runs"), *place, *team, cwd=tmp_path, **cluster)
    assert done.returncode == 0, done.stderr
    for fold in ("fold_0", "fold_1"):
        folders = [runs / fold for runs in (tmp_path / "runs" / "hecktor" / ARM, one_by_one)]
        one, other = (torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in folders)
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)
    logs = [log.read_text() for log in (tmp_path / "runs").rglob("*_log.out")]
    assert len(logs) == 4
    assert sum("2 processes, each on" in log for log in logs) == 2


def test_a_job_that_is_requeued_resumes_exactly(
    cohort: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    """Once pre-empted as submitit is told of it, by a signal, and once put back by the scheduler."""
    whole, parts = (tmp_path / name / "hecktor" / ARM / "fold_0" for name in ("whole", "parts"))
    only = ["fold=0"]
    done = run("train.py", *command(cohort, tmp_path / "whole", epochs=60), *only, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    arguments = [*command(cohort, tmp_path / "parts", epochs=60), *only, "hydra/launcher=submitit_slurm"]
    process = start(arguments, tmp_path, cluster)
    wait_for_epoch(parts, 5, process)
    (job,) = slurm.jobs(cluster)
    slurm.slurm(cluster, "scancel", "--signal=USR2", job)
    wait_until_requeued(cluster, job, times=1)
    wait_for_epoch(parts, epoch_of(parts) + 5, process)
    slurm.slurm(cluster, "scontrol", "requeue", job)
    wait_until_requeued(cluster, job, times=2)
    assert epoch_of(parts) < 59
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same_weights(parts, whole)
    assert (parts / "score.json").read_text() == (whole / "score.json").read_text()


def start(arguments: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def epoch_of(folder: Path) -> int:
    """The last epoch of the newest checkpoint, -1 where there is none."""
    last = folder / "last.ckpt"
    return int(torch.load(last, weights_only=True)["epoch"]) if last.exists() else -1


def wait_for_epoch(folder: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 300
    while epoch_of(folder) < epoch:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


def wait_until_requeued(environment: dict[str, str], job: str, times: int) -> None:
    limit = time.monotonic() + 300
    while f"Restarts={times} " not in slurm.slurm(environment, "scontrol", "show", "job", job):
        assert time.monotonic() < limit
        time.sleep(0.1)
