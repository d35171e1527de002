"""The same command again: runs that resume, finish once, and are never mixed up."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from entry import ROOT, job, run, tiny, weights, write_cohort
from wandb_files import offline_runs

from hnseg.errors import HnsegError


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


def test_the_same_command_again_reports_the_finished_run(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = job(cohort, tmp_path)
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    before = checkpoint.stat().st_mtime_ns
    assert job(cohort, tmp_path, "trainer.threads=1") == dice
    assert "finished before" in capsys.readouterr().out
    assert checkpoint.stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(cohort: Path, tmp_path: Path) -> None:
    job(cohort, tmp_path)
    with pytest.raises(HnsegError, match=r"optimizer\.step\.lr=0\.01, not 0\.1.*overwrite=true"):
        job(cohort, tmp_path, "optimizer.step.lr=0.1")
    job(cohort, tmp_path, "optimizer.step.lr=0.1", "overwrite=true")


@pytest.mark.parametrize(
    "asked",
    [["overwrite=true", "optimizer.step.lr=0.1"], ["overwrite=true", "init_from="]],
)
def test_what_cannot_be_trained_here_leaves_the_finished_run(
    cohort: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job(cohort, tmp_path)
    (folder,) = tmp_path.glob("hecktor/fine_resenc_cte/fold_0")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (tmp_path / "damaged.ckpt").write_bytes(b"not weights")
    asked = [text if text != "init_from=" else f"init_from={tmp_path / 'damaged.ckpt'}" for text in asked]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = [] if "init_from" in asked[-1] else ["trainer.device=cuda"]
    with pytest.raises(HnsegError, match=r"trainer\.device=cuda|damaged\.ckpt"):
        job(cohort, tmp_path, *asked, *device)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("part", ["__CT", ""])
def test_a_run_does_not_go_on_with_other_images_or_labels(tmp_path: Path, part: str) -> None:
    cohort = write_cohort(tmp_path / "scans")
    dice = job(cohort, tmp_path)
    (folder,) = tmp_path.glob("hecktor/fine_resenc_cte/fold_0")
    (folder / "score.json").unlink()  # as if stopped before its end
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    path = cohort / "A-0" / f"A-0{part}.nii.gz"
    kept, image = path.read_bytes(), sitk.ReadImage(str(path))
    sitk.WriteImage(image + 150 if part else image > 0, str(path))
    with pytest.raises(HnsegError, match=r"last\.ckpt: was trained on other images or labels"):
        job(cohort, tmp_path)
    (folder / "failed.txt").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    path.write_bytes(kept)
    assert job(cohort, tmp_path) == dice


def test_under_slurm_a_run_leaves_the_working_directory_alone(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would write hpc_ckpt_1.ckpt there on a signal, and load it in any run that starts there."""
    job(cohort, tmp_path, "name=expected")
    job(cohort, tmp_path, "name=other", "seed=1")
    expected, other, run_dir = (
        tmp_path / name / "fine_resenc_cte" / "fold_0" for name in ("expected", "other", "hecktor")
    )
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(other / "last.ckpt", work / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(work)
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    monkeypatch.setattr(
        "hnseg.training.callbacks.RunProgress.on_train_epoch_start",
        lambda *_: os.kill(os.getpid(), signal.SIGUSR1),
    )
    try:
        job(cohort, tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]
    assert [path.name for path in work.iterdir()] == ["hpc_ckpt_1.ckpt"]
    for key, value in weights(expected).items():
        torch.testing.assert_close(weights(run_dir)[key], value, rtol=0, atol=0)


def test_a_run_may_start_anew_from_its_own_weights(cohort: Path, tmp_path: Path) -> None:
    job(cohort, tmp_path)
    (best,) = tmp_path.glob("hecktor/fine_resenc_cte/fold_0/best.ckpt")
    job(cohort, tmp_path, "overwrite=true", f"init_from={best}")


def test_a_cohort_that_grew_does_not_deal_a_run_anew(tmp_path: Path) -> None:
    """The refusal's own remedy keeps the folds."""
    cohort = write_cohort(tmp_path / "scans")
    dice = job(cohort, tmp_path)
    (folder,) = tmp_path.glob("hecktor/fine_resenc_cte/fold_0")
    shutil.copytree(cohort / "A-0", cohort / "A-9")
    for path in (cohort / "A-9").iterdir():
        path.rename(path.with_name(path.name.replace("A-0", "A-9")))
    with pytest.raises(HnsegError, match=r"A-9 came; data\.split=.*split\.json"):
        job(cohort, tmp_path)
    assert not (folder / "failed.txt").exists()
    assert job(cohort, tmp_path, f"data.split={folder / 'split.json'}", "data.exclude=[A-9]") == dice


def between_epochs(patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as the second epoch begins."""
    from hnseg.training.callbacks import RunProgress

    start = RunProgress.on_train_epoch_start

    def interrupt(self: RunProgress, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        start(self, trainer, module)

    patch.setattr(RunProgress, "on_train_epoch_start", interrupt)


def behind_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the moment when the second epoch's last.ckpt lies on disk."""
    from hnseg.training.checkpoints import RunCheckpoints

    save = RunCheckpoints.save_checkpoint

    def interrupt(self: RunCheckpoints, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        save(self, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt" and checkpoint["epoch"] == 1:
            raise KeyboardInterrupt

    patch.setattr(RunCheckpoints, "save_checkpoint", interrupt)


@pytest.mark.parametrize(
    ("ema", "moment"), [("null", between_epochs), ("0.9", between_epochs), ("0.9", behind_a_checkpoint)]
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ema: str,
    moment: Callable[[pytest.MonkeyPatch], None],
) -> None:
    settings = ["training.epochs=3", "training.iterations=2", f"training.ema={ema}"]
    job(cohort, tmp_path, "name=whole", *settings)
    with monkeypatch.context() as patch:
        moment(patch)
        with pytest.raises(SystemExit, match="130"):
            job(cohort, tmp_path, "name=parts", *settings)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning turns Ctrl-C off on its way out
    assert "stopped; the same command goes on" in capsys.readouterr().err
    job(cohort, tmp_path, "name=parts", *settings)
    whole, parts = (tmp_path / name / "fine_resenc_cte" / "fold_0" for name in ("whole", "parts"))
    assert json.loads((whole / "score.json").read_text()) == json.loads((parts / "score.json").read_text())
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[key], value)
    epochs = []
    for folder in (whole, parts):
        with (folder / "metrics.csv").open(newline="") as file:
            epochs.append([row["epoch"] for row in csv.DictReader(file) if row["train/loss"]])
    assert epochs == [["0", "1", "2"]] * 2


@pytest.mark.slow
def test_a_terminated_run_says_so_and_ends_as_the_shell_expects(cohort: Path, tmp_path: Path) -> None:
    settings = [*tiny("resenc", cohort, tmp_path), "training.epochs=9999", "logger=csv"]
    command = [sys.executable, str(ROOT / "train.py"), "stage=fine", *settings]
    last = tmp_path / "hecktor" / "fine_resenc_cte" / "fold_0" / "last.ckpt"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert told.endswith("fold 0: stopped; the same command goes on where it stopped\n")


@pytest.mark.slow
def test_a_killed_run_resumes(cohort: Path, tmp_path: Path) -> None:
    settings = [*tiny("resenc", cohort, tmp_path), "training.epochs=400", "training.iterations=2"]
    settings.append("logger=wandb")
    command = [sys.executable, str(ROOT / "train.py"), "stage=fine", *settings]
    last = tmp_path / "hecktor" / "fine_resenc_cte" / "fold_0" / "last.ckpt"
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert last.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stopped = torch.load(last, weights_only=True)["epoch"]
    # Going on to a nearer end is another configuration, but one that this test may pretend was meant.
    stored = last.with_name("config.json")
    config = json.loads(stored.read_text())
    config["training"]["epochs"] = config["optimizer"]["schedule"]["total_iters"] = stopped + 3
    stored.write_text(json.dumps(config))
    done = run("train.py", "stage=fine", *settings, f"training.epochs={stopped + 3}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.load(last, weights_only=True)["epoch"] == stopped + 2
    assert last.with_name("score.json").exists()
    assert "epoch 1/" not in done.stderr  # it did not begin again
    (sent,) = offline_runs(last.parent)
    with last.with_name("metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for key in ("train/loss", "train/ce_loss", "val/dice"):
        kept = {int(row["step"]): float(row[key]) for row in rows if row[key]}
        assert list(kept) == [2 * epoch + 1 for epoch in range(stopped + 3)]  # every epoch once
        assert {row["_step"]: row[key] for row in sent.history if key in row} == kept
