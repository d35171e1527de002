"""A run's folder: begun, resumed under the same settings and folds alone, and never another run's."""

import gc
import json
import traceback
import weakref
from typing import Any

import pytest

from hnseg.data.splits import Split
from hnseg.errors import HnsegError
from hnseg.files import is_locked
from hnseg.training.runs import RunFolder

CONFIG = {
    "seed": 0,
    "training": {"patch": [160, 160, 160], "epochs": 1000},
    "trainer": {"device": "auto", "threads": None, "precision": "auto"},
    "data": {"root": "data", "workers": 0},
    "logger": {"kind": "wandb", "mode": "offline"},
}
SPLIT = Split((("A-1", "A-3"), ("A-2", "A-4")))


def changed(key: str, value: object) -> dict[str, Any]:
    """CONFIG with one dotted key changed."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    node[last] = value
    return config


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "fold_0")


@pytest.fixture
def trained(folder) -> RunFolder:
    """A run that was stopped after a checkpoint."""
    folder.begin(CONFIG, SPLIT)
    folder.last.write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [("seed", 1, "0"), ("training.patch", [128] * 3, r"\[160, 160, 160\]"), ("training.ema", 0.9, "None")],
)
def test_other_settings_are_refused_by_name(trained, key, value, before):
    with pytest.raises(HnsegError, match=rf"{trained.path} holds a run with {key}={before}, not "):
        trained.check(changed(key, value), SPLIT)


def test_a_trial_at_another_scale_is_named_by_its_scale(folder):
    """Not by the hundred keys in which it differs."""
    trial = changed("training.epochs", 2) | {"groups": {"scale": "demo", "optimizer": "short"}}
    folder.begin(trial, SPLIT)
    folder.last.write_bytes(b"weights")
    with pytest.raises(HnsegError, match=r"holds a run with scale=demo, not full"):
        folder.check(CONFIG | {"groups": {"scale": "full", "optimizer": "nnunet"}}, SPLIT)
    folder.check(trial | {"groups": {"scale": "full"}}, SPLIT)  # the same keys by other files


@pytest.mark.parametrize(
    ("key", "value"),
    [("trainer.device", "cpu"), ("data.workers", 4), ("data.root", "moved"), ("logger.mode", "online")],
)
def test_machine_and_places_may_change(trained, key, value):
    trained.check(changed(key, value), SPLIT)


def test_settings_and_folds_may_change_as_long_as_nothing_was_trained(folder):
    folder.begin(CONFIG, SPLIT)
    other, split = changed("trainer.precision", "float32"), Split((("A-1",), ("A-2",)))
    folder.check(other, split)
    folder.begin(other, split)
    assert json.loads(folder.config.read_text()) == other
    assert json.loads(folder.split.read_text())["folds"] == [["A-1"], ["A-2"]]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(HnsegError, match=r"file/fold_0: cannot be made .*runs=FOLDER"),
        RunFolder(tmp_path / "file" / "fold_0").locked(),
    ):
        pass


def test_a_run_that_was_refused_leaves_no_folder(folder):
    with pytest.raises(HnsegError), folder.locked():
        raise HnsegError("trainer.device=cuda: no GPU")
    assert not folder.path.parent.exists()


def test_overwriting_starts_another_run_and_leaves_other_files(trained):
    before = trained.id
    trained.best.write_bytes(b"old")
    trained.finish({"val/dice": 0.7})
    (trained.path / "mine.txt").write_text("kept")
    trained.begin(changed("seed", 1), SPLIT, overwrite=True)
    assert {path.name for path in trained.path.iterdir()} == {
        "config.json",
        "split.json",
        "run.id",
        "mine.txt",
    }
    assert trained.id != before


def test_overwriting_that_is_cut_off_does_not_pass_old_weights_for_new(trained, monkeypatch):
    unlink, left = type(trained.path).unlink, [2]

    def cut_off(path, missing_ok=False):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(type(trained.path), "unlink", cut_off)
    with pytest.raises(KeyboardInterrupt):
        trained.begin(changed("seed", 1), SPLIT, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(HnsegError, match="seed=0, not 1"):
        trained.check(changed("seed", 1), SPLIT)


@pytest.mark.parametrize(
    ("folds", "change"),
    [
        ((("A-1", "A-4"), ("A-2", "A-5")), "A-5 came; A-3 went"),
        ((("A-1", "A-2"), ("A-3", "A-4")), "drawn in another way"),
    ],
)
def test_a_run_keeps_its_folds_when_the_cohort_changes(trained, folds, change):
    with pytest.raises(HnsegError, match=rf"{change}.*data\.split={trained.split} .*overwrite=true"):
        trained.check(CONFIG, Split(folds))


class Tensor:
    """Something large."""


def test_a_failed_job_lets_go_of_what_it_held(folder):
    """Its error lives on until the sweep has ended, and would keep the tensors of every frame it passed."""
    held = []

    def train() -> None:
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        try:
            evaluate(tensor)
        except ValueError:
            raise RuntimeError("out of memory")  # noqa: B904 as libraries do

    def evaluate(tensor: Tensor) -> None:
        raise ValueError

    with pytest.raises(RuntimeError) as kept, folder.locked():
        train()
    gc.collect()
    assert held[0]() is None
    assert "in train" in "".join(traceback.format_exception(kept.value))


def test_an_error_before_the_run_has_begun_leaves_everything_as_it_was(tmp_path, folder):
    with pytest.raises(RuntimeError), RunFolder(tmp_path / "new").locked():
        raise RuntimeError("no such device")
    assert not list(tmp_path.iterdir())
    folder.begin(CONFIG, SPLIT)
    folder.finish({"val/dice": 0.75})
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(RuntimeError), folder.locked():
        raise RuntimeError("no such device")
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_two_processes_cannot_train_one_run(folder):
    with folder.locked():
        folder.begin(CONFIG, SPLIT)
        assert is_locked(folder.path)
        before = sorted(path.name for path in folder.path.iterdir())
        with pytest.raises(HnsegError, match="another process writes there"), RunFolder(folder.path).locked():
            pass
        assert sorted(path.name for path in folder.path.iterdir()) == before
    assert not is_locked(folder.path)
