"""Two processes that train one network: what they make is what one process makes of the same batches."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from entry import ROOT, job, run, tiny, write_cohort
from processes import all_end, descendants

from hnseg.errors import HnsegError

pytestmark = pytest.mark.slow

FOLD = Path("fine_resenc_cte") / "fold_0"
DDP = ["trainer=ddp", "trainer.device=cpu", "trainer.precision=float32", "trainer.deterministic=true"]
# Sums over a batch in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans", cases=6)


def command(cohort: Path, runs: Path, *more: str) -> list[str]:
    """Of a run with averaged weights, batches in two parts, and three validation cases for two processes."""
    length = ["training.epochs=20", "training.iterations=3", "training.batch_size=4", "training.ema=0.9"]
    settings = [*tiny("resenc", cohort, runs), *length, "trainer.accumulate=2", "augment=nnunet"]
    # Three stages: two depths are supervised, of which the lower has the weight 0 and no gradient.
    deep = [f"model.settings.{key}" for key in ("features=[4,8,8]", "strides=[1,2,2]", "blocks=[1,1,1]")]
    return ["stage=fine", *settings, *deep, "trainer.deterministic=true", "logger=csv", *more]


@pytest.fixture(scope="module")
def alone(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    runs = tmp_path_factory.mktemp("alone")
    done = run("train.py", *command(cohort, runs, "name=alone"), cwd=runs)
    assert done.returncode == 0, done.stderr
    return runs / "alone" / FOLD


def curves(folder: Path) -> dict[str, list[float]]:
    """What was logged, without time and memory."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith(("train/", "val/", "lr")) and "sample" not in name]
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    return stored["state_dict"] | {f"own {k}": v for k, v in stored["current_model_state"].items()}


def assert_alike(one: Path, other: Path) -> None:
    """The same curves and weights, up to rounding, and official scores, sums of float64, all but exactly."""
    first, second = curves(one), curves(other)
    assert first.keys() == second.keys()
    assert {"train/loss", "val/loss", "val/dice", "val/gtvp_dsc", "val/gtvn_dsc_agg"} <= first.keys()
    for name, values in first.items():
        assert len(values) == 20
        assert values == pytest.approx(second[name], rel=1e-4, abs=1e-5)
        if name.startswith("val/gtv"):
            assert values == pytest.approx(second[name], rel=1e-12, abs=0)
    expected = weights(other)
    assert weights(one).keys() == expected.keys()
    for name, value in weights(one).items():
        torch.testing.assert_close(value, expected[name], **TOLERANCE)


def test_two_processes_train_as_one_does(cohort: Path, alone: Path, tmp_path: Path) -> None:
    done = run("train.py", *command(cohort, tmp_path, "name=two", *DDP), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes, each on cpu") == 1
    assert done.stderr.count("epoch 20/20") == 1
    assert_alike(tmp_path / "two" / FOLD, alone)
    files = [sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "two" / FOLD, alone)]
    assert files[0] == files[1]
    again = run("train.py", *command(cohort, tmp_path, "name=two", *DDP), cwd=tmp_path)
    assert "finished before" in again.stdout


def test_several_machines_train_as_one_does(cohort: Path, alone: Path, tmp_path: Path) -> None:
    """Each a torchrun of its own, which find each other by address."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    place = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    arguments = [ROOT / "train.py", *command(cohort, tmp_path, "name=far", *DDP, "fold=0,1", "-m")]
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *place, f"--node-rank={rank}", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    assert sum(text.count("2 processes, each on cpu") for text in told) == 2  # once a fold
    assert_alike(tmp_path / "far" / FOLD, alone)
    assert (tmp_path / "far" / FOLD.parent / "fold_1" / "score.json").exists()


def test_what_two_processes_began_one_ends(cohort: Path, alone: Path, tmp_path: Path) -> None:
    """Killed after an epoch, none of the processes lives on, and the run goes on with any number."""
    arguments = command(cohort, tmp_path, "name=parts")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, *DDP],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last, limit = tmp_path / "parts" / FOLD / "last.ckpt", time.monotonic() + 600
    while not last.exists():
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    members = descendants(process.pid)
    process.kill()
    process.wait()
    assert all_end(members, seconds=60)
    assert not (tmp_path / "parts" / FOLD / "score.json").exists()
    done = run("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "parts" / FOLD, alone)


def test_ctrl_c_stops_all_of_them(cohort: Path, tmp_path: Path) -> None:
    arguments = command(cohort, tmp_path, "name=stopped", *DDP, "training.epochs=9999")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    last, limit = tmp_path / "stopped" / FOLD / "last.ckpt", time.monotonic() + 600
    while not last.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    members = descendants(process.pid)
    assert members
    os.kill(process.pid, signal.SIGINT)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 130
    assert told.endswith("stopped; the same command goes on where it stopped\n")
    assert all_end(members, seconds=60)


def test_a_loss_that_is_nan_ends_all_of_them_with_one_line(cohort: Path, tmp_path: Path) -> None:
    """In a sweep, so that the job has a command of its own, and the next job runs."""
    arguments = [*command(cohort, tmp_path, "name=diverged", *DDP), "optimizer.step.lr=1e30,0.01", "-m"]
    arguments += ["arm='lr_${optimizer.step.lr}'", "training.epochs=2"]
    done = run("train.py", *arguments, cwd=tmp_path)
    (line,) = [line for line in done.stderr.splitlines() if "loss nan" in line]
    assert done.returncode == 2
    assert line.startswith("hnseg train: error: ")
    assert (tmp_path / "diverged" / "lr_0.01" / "fold_0" / "score.json").exists()


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_starts(
    cohort: Path, tmp_path: Path
) -> None:
    with pytest.raises(HnsegError, match=r"training\.batch_size=6.*multiple of 4"):
        job(cohort, tmp_path, "training.batch_size=6", "trainer.accumulate=2", "trainer.processes=2")
    assert not (tmp_path / "hecktor").exists()  # nothing that the mended command would clash with
