"""Where code and data of a run come from, told without the machine."""

import subprocess
from pathlib import Path

import pytest

from hnseg.training.description import git_state, told


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "One")
    git(tmp_path, "remote", "add", "origin", "https://token@example.org/private.git")
    return tmp_path


def test_git_tells_the_commit_and_whether_the_code_is_another(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "notes.txt").write_text("beside the code")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "code.py").write_text("2\n")
    assert git_state(checkout) == {"commit": commit, "dirty": True}


def test_a_checkout_of_something_else_is_not_ours(checkout):
    inside = checkout / "site-packages"
    inside.mkdir()
    assert git_state(inside) is None


def test_no_git_no_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_places_and_cases_are_left_out_and_the_rest_stays():
    data = {"root": "coh", "heads": "coh/heads", "predicted_heads": None, "coarse": "rooms/7", "cache": "c"}
    config = {
        "data": {**data, "split": "folds.json", "folds": 5, "exclude": ["JANE-DOE"]},
        "runs": "clinic",
        "run_dir": "clinic/a/fold_0",
        "init_from": {"path": "clinic/best.ckpt", "sha256": "5ea1"},
        "else": {"root": "/home/x", "names": ["~/y", "C:\\data", "x/y"]},
        "patch": [8, 8],
        "b": None,
    }
    hidden = {key: value and "(path)" for key, value in data.items()}
    expected = {
        "data": {**hidden, "split": "(path)", "folds": 5},
        "runs": "(path)",
        "run_dir": "(path)",
        "init_from": {"path": "(path)", "sha256": "5ea1"},
        "else": {"root": "(path)", "names": ["(path)"] * 2 + ["x/y"]},
        "patch": [8, 8],
        "b": None,
    }
    assert told(config) == expected


@pytest.mark.parametrize("split", [None, "centres"])
def test_a_dealing_without_a_file_is_told(split):
    assert told({"data": {"split": split}}) == {"data": {"split": split}}
