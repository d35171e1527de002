"""A run's folder: fresh, interrupted or finished, and never another run's."""

import json
from functools import partial
from pathlib import Path

import pytest

from hnseg.data.splits import Split
from hnseg.errors import HnsegError
from hnseg.training.run_folder import RunFolder

CONFIG = {
    "fold": 0,
    "seed": 0,
    "overwrite": False,
    "training": {"patch": [160, 160, 160], "epochs": 1000},
    "trainer": {"device": "auto", "threads": None, "precision": "auto"},
    "data": {"root": "data", "workers": 0, "prepare_workers": None},
    "logger": {"kind": "wandb", "mode": "offline"},
}


def changed(key: str, value: object) -> dict:
    """CONFIG with one dotted key changed."""
    config = json.loads(json.dumps(CONFIG))
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    node[last] = value
    return config


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "fold_0")


def test_a_run_is_fresh_then_interrupted_then_finished(folder):
    assert folder.begin(CONFIG) == "fresh"
    assert folder.begin(CONFIG) == "fresh"  # stopped before the first checkpoint
    folder.last.write_bytes(b"weights")
    assert folder.begin(CONFIG) == "interrupted"
    folder.finish({"val/dice": 0.7})
    assert folder.begin(CONFIG) == "finished"
    assert folder.scores() == {"val/dice": 0.7}
    assert json.loads((folder.path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("seed", 1, "0"),
        ("training.epochs", 10, "1000"),
        ("training.patch", [128, 128, 128], r"\[160, 160, 160\]"),
        ("data.root", "elsewhere", "[^ ]*/data"),
        ("trainer.precision", "float32", "auto"),
        ("training.ema", 0.9, "None"),
    ],
)
def test_other_settings_are_refused_by_name(folder, key, value, before):
    folder.begin(CONFIG)
    folder.last.write_bytes(b"weights")
    with pytest.raises(HnsegError, match=rf"holds a run with {key}={before}, not ") as caught:
        folder.begin(changed(key, value))
    assert str(folder.path) in str(caught.value)
    assert "overwrite=true" in str(caught.value)
    assert json.loads((folder.path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.device", "cpu"),
        ("trainer.threads", 2),
        ("data.workers", 4),
        ("data.prepare_workers", 1),
        ("logger.mode", "online"),
        ("overwrite", True),
        ("data.root", "data/"),
        ("data.root", str(Path("data").absolute())),
    ],
)
def test_what_does_not_change_the_result_may_change(folder, key, value):
    folder.begin(CONFIG)
    folder.last.write_bytes(b"weights")
    assert folder.begin(changed(key, value)) == "interrupted"


def test_settings_may_change_as_long_as_nothing_was_trained_with_them(folder):
    folder.begin(CONFIG)
    assert folder.begin(changed("trainer.precision", "float32")) == "fresh"
    assert json.loads((folder.path / "config.json").read_text())["trainer"]["precision"] == "float32"


def test_more_epochs_need_a_checkpoint_to_go_on_from(folder):
    folder.begin(changed("training.epochs", 10))
    folder.best.write_bytes(b"weights")
    folder.finish({"val/dice": 0.7})
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(HnsegError, match=r"last\.ckpt is gone.*more epochs than 10"):
        folder.begin(changed("training.epochs", 30))
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "score.json", "split.json"])
def test_a_damaged_file_is_named(folder, name):
    folder.begin(CONFIG, split=DEALT)
    folder.last.write_bytes(b"weights")
    folder.finish({"val/dice": 0.7})
    (folder.path / name).write_text("")
    read = folder.scores if name == "score.json" else partial(folder.begin, CONFIG, split=DEALT)
    with pytest.raises(HnsegError, match=rf"{name}: damaged"):
        read()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(HnsegError, match=r"file/fold_0: cannot be written .*runs=FOLDER"),
        RunFolder(tmp_path / "file" / "fold_0").claimed(CONFIG),
    ):
        pass


def test_more_epochs_go_on_and_are_remembered(folder):
    begun = {**changed("training.epochs", 10), "optimizer": {"schedule": {"total_iters": 10, "power": 0.9}}}
    more = {**changed("training.epochs", 30), "optimizer": {"schedule": {"total_iters": 30, "power": 0.9}}}
    folder.begin(begun)
    folder.last.write_bytes(b"weights")
    folder.progress.write_text('{"epoch": 10}')
    folder.finish({"val/dice": 0.7})
    assert folder.begin(more) == "interrupted"
    assert folder.lengths == [{"epochs": 10, "trained": 10}]
    assert folder.begin(more) == "interrupted"
    assert folder.lengths == [{"epochs": 10, "trained": 10}]
    other = {**more, "optimizer": {"schedule": {"total_iters": 30, "power": 0.5}}}
    with pytest.raises(HnsegError, match=r"optimizer\.schedule\.power=0\.9, not 0\.5"):
        folder.begin(other)
    with pytest.raises(HnsegError, match=r"training\.epochs=30, not 10"):
        folder.begin(begun)


def test_a_lengthening_that_is_cut_off_is_done_again(folder, monkeypatch):
    folder.begin(changed("training.epochs", 10))
    folder.last.write_bytes(b"weights")
    folder.progress.write_text('{"epoch": 7}')
    rename = type(folder.path).replace
    for survives in range(2):
        left = [survives]

        def cut_off(path, target, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(type(folder.path), "replace", cut_off)
            with pytest.raises(KeyboardInterrupt):
                folder.begin(changed("training.epochs", 30))
    assert folder.begin(changed("training.epochs", 30)) == "interrupted"
    assert folder.lengths == [{"epochs": 10, "trained": 7}]


def test_overwriting_starts_again_under_new_settings(folder):
    folder.begin(CONFIG)
    folder.last.write_bytes(b"old")
    folder.best.write_bytes(b"old")
    folder.finish({"val/dice": 0.7})
    (folder.path / "mine.txt").write_text("kept")
    other = changed("seed", 1)
    assert folder.begin(other, overwrite=True) == "fresh"
    assert {path.name for path in folder.path.iterdir()} == {"config.json", "mine.txt"}
    assert folder.begin(other) == "fresh"


def test_overwriting_that_is_cut_off_does_not_pass_old_weights_for_new(folder, monkeypatch):
    folder.begin(CONFIG)
    folder.last.write_bytes(b"old")
    folder.best.write_bytes(b"old")
    unlink, left = type(folder.path).unlink, [2]

    def cut_off(path, missing_ok=False):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(type(folder.path), "unlink", cut_off)
    with pytest.raises(KeyboardInterrupt):
        folder.begin(changed("seed", 1), overwrite=True)
    monkeypatch.undo()
    with pytest.raises(HnsegError, match="seed=0, not 1"):
        folder.begin(changed("seed", 1))


def test_overwriting_nothing_is_a_fresh_run(folder):
    assert folder.begin(CONFIG, overwrite=True) == "fresh"


DEALT = Split((("A-1", "A-3"), ("A-2", "A-4")))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("folds", "change"),
    [
        ((("A-1", "A-4"), ("A-2", "A-5")), "A-5 came; A-3 went"),
        ((("A-1", "A-2"), ("A-3", "A-4")), "dealt in another way"),
    ],
)
def test_a_run_keeps_its_folds_when_the_cohort_changes(folder, folds, change, finished):
    folder.begin(CONFIG, split=DEALT)
    folder.last.write_bytes(b"weights")
    if finished:
        folder.finish({"val/dice": 0.7})
    kept = folder.split.read_bytes()
    with pytest.raises(HnsegError, match=rf"{change}.*data\.split={folder.split} .*overwrite=true"):
        folder.begin(CONFIG, split=Split(folds))
    assert folder.split.read_bytes() == kept
    assert folder.begin(CONFIG, split=Split(folds), overwrite=True) == "fresh"
    assert json.loads(folder.split.read_text())["hash"] == Split(folds).hash


def test_the_same_folds_may_be_named_in_another_way(folder):
    """As the refusal advises: by the run's own file, without the case that came."""
    folder.begin(CONFIG, split=DEALT)
    folder.last.write_bytes(b"weights")
    advised = changed("data.split", str(folder.split))
    advised["data"]["exclude"] = ["A-5"]
    assert folder.begin(advised, split=DEALT) == "interrupted"
    with pytest.raises(HnsegError, match=r"data\.exclude=None, not \['A-5'\]"):
        folder.begin(advised, split=Split(DEALT.folds[::-1]))


def test_folds_may_change_as_long_as_nothing_was_trained_on_them(folder):
    folder.begin(CONFIG, split=DEALT)
    other = Split((("A-1",), ("A-2",)))
    assert folder.begin(CONFIG, split=other) == "fresh"
    assert json.loads(folder.split.read_text())["folds"] == [["A-1"], ["A-2"]]


def test_an_option_that_is_younger_than_the_run_was_off_in_it(folder):
    folder.begin(CONFIG)
    folder.last.write_bytes(b"weights")
    younger = CONFIG | {"model": {"gating": False}, "recipe": {"new": None}}
    assert folder.begin(younger) == "interrupted"
    with pytest.raises(HnsegError, match=r"model\.gating=None, not True"):
        folder.begin(CONFIG | {"model": {"gating": True}})
