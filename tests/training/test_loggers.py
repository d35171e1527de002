"""Loggers: metrics.csv always, nothing lost or doubled on resuming, and what they show of a run."""

import csv
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hnseg.config import LoggerSettings, compose_job
from hnseg.errors import HnsegError
from hnseg.training.loggers import git_state, public_settings, require_loggers


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_keeps_what_its_checkpoint_has_behind_it_alone(tmp_path, log):
    log(
        tmp_path,
        {0: {"train/loss": 0.5}, 1: {"val/dice": 0.75}, 2: {"train/loss": 0.4}, 3: {"val/dice": 0.1}},
    )
    assert rows(tmp_path)[1] == {"step": "1", "train/loss": "", "val/dice": "0.75"}
    log(tmp_path, {2: {"train/loss": 0.25, "lr": 0.1}, 3: {"val/dice": 0.2}}, resume=2)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]
    assert [row["train/loss"] for row in rows(tmp_path)] == ["0.5", "", "0.25", ""]
    assert [row["val/dice"] for row in rows(tmp_path)] == ["", "0.75", "", "0.2"]
    assert [row["lr"] for row in rows(tmp_path)] == ["", "", "0.1", ""]
    assert b"\r" not in (tmp_path / "metrics.csv").read_bytes()


@pytest.mark.parametrize("damage", [(b",", b";"), (b"1,", b"one,"), (b"train", b"tr\xff")])
def test_a_damaged_file_is_named_and_stays(tmp_path, log, damage):
    log(tmp_path, {0: {"train/loss": 0.5}, 1: {"train/loss": 0.25}})
    path = tmp_path / "metrics.csv"
    path.write_bytes(damaged := path.read_bytes().replace(*damage))
    with pytest.raises(HnsegError, match=r"metrics\.csv.*; put it back, or move it away"):
        log(tmp_path, {2: {"train/loss": 0.1}}, resume=2)
    assert path.read_bytes() == damaged


def test_tensorboard_shows_every_step_of_a_resumed_run_once(tmp_path, log):
    losses = {0: {"train/loss": 0.5}, 1: {"train/loss": 0.4}, 2: {"train/loss": 9.0}}
    log(tmp_path, losses, kind="tensorboard")
    log(tmp_path, {2: {"train/loss": 0.3}}, resume=2, kind="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(0, 0.5), (1, pytest.approx(0.4)), (2, pytest.approx(0.3))]
    text = (tmp_path / "tensorboard" / "hparams.yaml").read_text()
    assert not any(secret in text for secret in ("/home/somebody", "ward-7", "JANE-DOE"))


def test_a_missing_tensorboard_is_refused_with_its_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HnsegError, match=r"pip install hnseg\[tensorboard\]"):
        require_loggers(LoggerSettings(kind="tensorboard"))


@pytest.mark.parametrize(
    ("mode", "pictures", "paints"),
    [("offline", None, True), ("offline", False, False), ("online", None, False), ("online", True, True)],
)
def test_pictures_go_online_by_a_switch_of_their_own(mode: str, pictures: bool | None, paints: bool):
    assert LoggerSettings(kind="wandb", mode=mode, pictures=pictures).paints is paints


def test_settings_are_shown_without_places_and_cases(tmp_path):
    data = {"root": "coh", "coarse": "rooms/7", "cache": "c", "split": "folds.json", "exclude": "[JANE-DOE]"}
    places = [f"data.{key}={value}" for key, value in data.items()]
    places += ["runs=clinic", "init_from=clinic/best.ckpt", "+model.settings.weights=/clinic/w.pt"]
    shown = public_settings(compose_job(places))
    hidden = {"root", "head_labels", "coarse", "cache", "split"}
    assert {key for key, value in shown["data"].items() if value == "(path)"} == hidden
    assert "exclude" not in shown["data"]
    assert (shown["runs"], shown["run_dir"], shown["init_from"]) == ("(path)",) * 3
    assert shown["model"]["settings"]["weights"] == "(path)"
    assert shown["training"]["patch"] == [160, 160, 160]
    assert shown["model"]["settings"]["_target_"].startswith("hnseg.models.nets.")
    assert public_settings(compose_job(["data.split=centres"]))["data"]["split"] == "centres"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_and_whether_the_code_differs_from_it(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "One")
    (tmp_path / "notes.txt").write_text("beside the code")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "code.py").write_text("2\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") is None  # installed inside another checkout
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None
