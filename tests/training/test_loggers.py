"""Loggers: metrics.csv always, nothing lost or doubled on resuming, W&B left out where it is not wanted."""

import csv
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hnseg.config import LoggerSettings
from hnseg.errors import HnsegError
from hnseg.training.loggers import require_loggers


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_holds_what_was_logged(tmp_path, log):
    log(tmp_path, {0: {"train/loss": 0.5}, 1: {"train/loss": 0.25, "val/dice": 0.75}})
    first, second = rows(tmp_path)
    assert first == {"step": "0", "train/loss": "0.5", "val/dice": ""}
    assert second == {"step": "1", "train/loss": "0.25", "val/dice": "0.75"}


def test_a_resumed_run_keeps_what_its_checkpoint_has_behind_it_alone(tmp_path, log):
    log(
        tmp_path,
        {0: {"train/loss": 0.5}, 1: {"val/dice": 0.75}, 2: {"train/loss": 0.4}, 3: {"val/dice": 0.1}},
    )
    log(tmp_path, {2: {"train/loss": 0.25, "lr": 0.1}, 3: {"val/dice": 0.2}}, resume=2)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]
    assert [row["train/loss"] for row in rows(tmp_path)] == ["0.5", "", "0.25", ""]
    assert [row["val/dice"] for row in rows(tmp_path)] == ["", "0.75", "", "0.2"]
    assert [row["lr"] for row in rows(tmp_path)] == ["", "", "0.1", ""]


def test_what_cannot_be_written_leaves_the_rows_of_before(tmp_path, log, monkeypatch):
    log(tmp_path, {0: {"train/loss": 0.5}, 1: {"train/loss": 0.25}})
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr(Path, "write_text", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(HnsegError, match=r"metrics\.csv: cannot be written \(No space left"):
        log(tmp_path, {2: {"train/loss": 0.1, "val/dice": 0.3}}, resume=2)
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("damage", [(b",", b";"), (b"1,", b"one,"), (b"train", b"tr\xff")])
def test_a_damaged_file_is_named_and_stays(tmp_path, log, damage):
    log(tmp_path, {0: {"train/loss": 0.5}, 1: {"train/loss": 0.25}})
    path = tmp_path / "metrics.csv"
    path.write_bytes(damaged := path.read_bytes().replace(*damage))
    with pytest.raises(HnsegError, match=r"metrics\.csv.*; put it back, or move it away"):
        log(tmp_path, {2: {"train/loss": 0.1}}, resume=2)
    assert path.read_bytes() == damaged


def test_csv_alone_leaves_wandb_out():
    """Neither imported nor written, in a process of its own."""
    code = (
        "import sys, tempfile, pathlib\n"
        "from hnseg.training.loggers import loggers\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "with loggers(folder, {'logger': {'kind': 'csv'}}, {}) as chosen:\n"
        "    chosen[0].log_metrics({'x': 1.0}, 0); chosen[0].save()\n"
        "assert {p.name for p in folder.iterdir()} == {'metrics.csv'}, list(folder.iterdir())\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensorboard_shows_every_step_of_a_resumed_run_once(tmp_path, log):
    log(
        tmp_path, {0: {"train/loss": 0.5}, 1: {"train/loss": 0.4}, 2: {"train/loss": 9.0}}, kind="tensorboard"
    )
    log(tmp_path, {2: {"train/loss": 0.3}}, resume=2, kind="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(0, 0.5), (1, pytest.approx(0.4)), (2, pytest.approx(0.3))]
    told = (tmp_path / "tensorboard" / "hparams.yaml").read_text()
    assert "/home/somebody" not in told
    assert "ward-7" not in told
    assert "JANE-DOE" not in told


def test_tensorboard_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HnsegError, match=r"pip install hnseg\[tensorboard\]"):
        require_loggers(LoggerSettings(kind="tensorboard"))


@pytest.mark.parametrize(
    ("mode", "pictures", "paints"),
    [("offline", None, True), ("offline", False, False), ("online", None, False), ("online", True, True)],
)
def test_pictures_go_online_by_a_switch_of_their_own(mode: str, pictures: bool | None, paints: bool):
    assert LoggerSettings(kind="wandb", mode=mode, pictures=pictures).paints is paints
