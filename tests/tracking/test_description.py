"""Where code and data of a run come from, told without the machine."""

import subprocess
from pathlib import Path

import pytest

from hnseg.tracking.description import git_state, without_places


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


def test_places_are_left_out_and_the_rest_stays():
    config = {
        "a": {"root": "/home/x", "names": ["~/y", "C:\\data", "x/y"]},
        "patch": [8, 8],
        "b": None,
    }
    expected = {"a": {"root": "(path)", "names": ["(path)"] * 2 + ["x/y"]}, "patch": [8, 8], "b": None}
    assert without_places(config) == expected
