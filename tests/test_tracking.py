"""Loggers: on disk unless asked otherwise, one W&B run each, nothing lost on resuming."""

import csv
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hnseg.errors import HnsegError
from hnseg.tracking import loggers

CONFIG = {"fold": 0, "training": {"epochs": 2}}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to leave the machine fails; the addresses tried are returned."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise OSError("no network in tests")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tried


def log(folder: Path, *metrics: dict[str, float], **settings: Any) -> None:
    settings = {"kind": "csv", "arm": "fine_resenc", "group": "test"} | settings
    with loggers(folder, CONFIG, **settings) as chosen:
        for step, values in enumerate(metrics):
            for logger in chosen:
                logger.log_metrics(values, step)
                logger.save()
        for logger in chosen:
            logger.finalize("success")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format behind 7 bytes of header."""
    data, offset, record = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:  # too little left in the block for a header
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def logged(folder: Path, kind: str) -> list[Any]:
    """The records of one kind (history, exit, ...) in the offline W&B file of a run folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, list[Any]] = {}
    # W&B's service process still writes when the run is finished; its last record is `exit`.
    for _ in range(300):
        found = {}
        for record in map(Record.FromString, records(path)):
            name = record.WhichOneof("record_type")
            found.setdefault(name, []).append(getattr(record, name))
        if "exit" in found:
            break
        time.sleep(0.1)
    return found.get(kind, [])


def history(folder: Path) -> list[dict[str, Any]]:
    """The metrics, step by step."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in step.item}
        for step in logged(folder, "history")
    ]


def test_metrics_csv_holds_what_was_logged(tmp_path: Path) -> None:
    log(tmp_path, {"train/loss": 0.5}, {"train/loss": 0.25, "val/dice": 0.75})
    first, second = rows(tmp_path)
    assert first == {"step": "0", "train/loss": "0.5", "val/dice": ""}
    assert second == {"step": "1", "train/loss": "0.25", "val/dice": "0.75"}


def test_a_resumed_run_keeps_the_metrics_it_had(tmp_path: Path) -> None:
    log(tmp_path, {"train/loss": 0.5}, {"val/dice": 0.75})
    log(tmp_path, {"train/loss": 0.25, "lr": 0.1})
    assert [row["train/loss"] for row in rows(tmp_path)] == ["0.5", "", "0.25"]
    assert [row["val/dice"] for row in rows(tmp_path)] == ["", "0.75", ""]
    assert [row["lr"] for row in rows(tmp_path)] == ["", "", "0.1"]


def test_csv_alone_leaves_wandb_out() -> None:
    """Neither imported nor written, in a process of its own."""
    code = (
        "import sys, tempfile, pathlib\n"
        "from hnseg.tracking import loggers\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "with loggers(folder, {'fold': 0}, kind='csv', arm='a', group='g') as chosen:\n"
        "    chosen[0].log_metrics({'x': 1.0}, 0); chosen[0].save()\n"
        "assert {p.name for p in folder.iterdir()} == {'metrics.csv'}, list(folder.iterdir())\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wandb_stays_on_disk_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.chdir(tmp_path)
    log(tmp_path / "run", {"train/loss": 0.5}, {"train/loss": 0.25, "val/dice": 0.75}, kind="wandb")
    assert os.environ["WANDB_MODE"] == "offline"
    assert no_network == []
    assert capfd.readouterr().out == ""
    losses = [entry["train/loss"] for entry in history(tmp_path / "run")]
    assert losses == [0.5, 0.25]
    assert history(tmp_path / "run")[1]["val/dice"] == 0.75
    assert len(rows(tmp_path / "run")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing beside the run's folder


def test_runs_of_one_process_do_not_merge(tmp_path: Path) -> None:
    for fold, loss in enumerate((0.5, 0.25)):
        log(tmp_path / f"fold_{fold}", {"train/loss": loss}, kind="wandb")
    for fold, loss in enumerate((0.5, 0.25)):
        (entry,) = history(tmp_path / f"fold_{fold}")
        assert entry["train/loss"] == loss


def test_a_run_that_fails_is_closed_as_failed(tmp_path: Path) -> None:
    import wandb

    with pytest.raises(RuntimeError, match="lost"):  # noqa: SIM117
        with loggers(tmp_path, CONFIG, kind="wandb", arm="a", group="g"):
            raise RuntimeError("lost")
    assert wandb.run is None
    assert [one.exit_code for one in logged(tmp_path, "exit")] == [1]


def test_online_without_a_key_is_one_line_and_no_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HnsegError, match="WANDB_API_KEY"):
        log(tmp_path / "run", kind="wandb", mode="online")
    assert no_network == []


@pytest.mark.parametrize(
    ("settings", "part"),
    [({"kind": "tensorboard"}, "logger.kind"), ({"kind": "wandb", "mode": "on"}, "logger.mode")],
)
def test_unknown_kinds_and_modes_are_told(tmp_path: Path, settings: dict[str, str], part: str) -> None:
    with pytest.raises(HnsegError, match=part):
        log(tmp_path, **settings)
