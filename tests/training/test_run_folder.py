"""A run's folder: fresh, interrupted or finished, and never another run's."""

import json

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
SPLIT = Split((("A-1", "A-3"), ("A-2", "A-4")))


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


@pytest.fixture
def trained(folder) -> RunFolder:
    """A run that was stopped after a checkpoint."""
    folder.begin(CONFIG, split=SPLIT)
    folder.last.write_bytes(b"weights")
    return folder


def test_a_run_is_fresh_then_interrupted_then_finished(folder):
    assert folder.look(CONFIG) == "fresh"
    folder.begin(CONFIG)
    assert folder.look(CONFIG) == "fresh"  # stopped before the first checkpoint
    folder.last.write_bytes(b"weights")
    assert folder.look(CONFIG) == "interrupted"
    folder.finish({"val/dice": 0.7})
    assert folder.look(CONFIG) == "finished"
    assert folder.scores() == {"val/dice": 0.7}
    assert json.loads(folder.config.read_text()) == CONFIG


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("seed", 1, "0"),
        ("training.epochs", 2000, "1000"),
        ("training.patch", [128, 128, 128], r"\[160, 160, 160\]"),
        ("training.ema", 0.9, "None"),
    ],
)
def test_other_settings_are_refused_by_name(trained, key, value, before):
    with pytest.raises(HnsegError, match=rf"{trained.path} holds a run with {key}={before}, not "):
        trained.look(changed(key, value), split=SPLIT)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.device", "cpu"),
        ("trainer.threads", 2),
        ("data.workers", 4),
        ("data.root", "moved"),
        ("logger.mode", "online"),
    ],
)
def test_machine_and_places_may_change(trained, key, value):
    assert trained.look(changed(key, value), split=SPLIT) == "interrupted"


def test_settings_and_folds_may_change_as_long_as_nothing_was_trained(folder):
    folder.begin(CONFIG, split=SPLIT)
    other, split = changed("trainer.precision", "float32"), Split((("A-1",), ("A-2",)))
    assert folder.look(other, split=split) == "fresh"
    folder.begin(other, split=split)
    assert json.loads(folder.config.read_text()) == other
    assert json.loads(folder.split.read_text())["folds"] == [["A-1"], ["A-2"]]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(HnsegError, match=r"file/fold_0: cannot be written .*runs=FOLDER"),
        RunFolder(tmp_path / "file" / "fold_0").locked(),
    ):
        pass


def test_overwriting_starts_another_run_and_leaves_other_files(trained):
    before = trained.id
    trained.best.write_bytes(b"old")
    trained.finish({"val/dice": 0.7})
    (trained.path / "mine.txt").write_text("kept")
    other = changed("seed", 1)
    assert trained.look(other, overwrite=True) == "fresh"
    trained.begin(other, overwrite=True)
    assert {path.name for path in trained.path.iterdir()} == {"config.json", "run.id", "mine.txt"}
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
        trained.begin(changed("seed", 1), overwrite=True)
    monkeypatch.undo()
    with pytest.raises(HnsegError, match="seed=0, not 1"):
        trained.look(changed("seed", 1))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("folds", "change"),
    [
        ((("A-1", "A-4"), ("A-2", "A-5")), "A-5 came; A-3 went"),
        ((("A-1", "A-2"), ("A-3", "A-4")), "drawn in another way"),
    ],
)
def test_a_run_keeps_its_folds_when_the_cohort_changes(trained, folds, change, finished):
    if finished:
        trained.finish({"val/dice": 0.7})
    with pytest.raises(HnsegError, match=rf"{change}.*data\.split={trained.split} .*overwrite=true"):
        trained.look(CONFIG, split=Split(folds))
    # As the refusal advises: by the run's own file, without the case that came.
    advised = changed("data.split", str(trained.split))
    advised["data"]["exclude"] = ["A-5"]
    assert trained.look(advised, split=SPLIT) == ("finished" if finished else "interrupted")
