"""W&B runs: one for each run folder, on disk unless asked otherwise; and an ablation's table."""

from __future__ import annotations

import os
import shutil
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.proto import wandb_internal_pb2

from hnseg.config import LoggerSettings
from hnseg.errors import HnsegError
from hnseg.training.pictures import pictures

_BLOCK = 2**15  # bytes


class StepLogger(WandbLogger):
    """Logs under the step it is given, one row a step; steps before `first` lie in the run already."""

    def __init__(self, run: wandb.Run, first: int) -> None:
        super().__init__(experiment=run)
        self.first = first

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is None or step >= self.first:
            self.experiment.log(dict(metrics), step=step)


@contextmanager
def wandb_logger(
    folder: Path, run_id: str, rows: Sequence[Mapping[str, str]], settings: LoggerSettings, **fields: Any
) -> Iterator[StepLogger]:
    """The logger of a run folder; a resumed run stays one W&B run.

    W&B cannot append to a file on disk: it begins another under the same id. As long as nothing has been
    sent, earlier files are removed and metrics.csv is replayed whole. Once something has been sent, they
    stay, and metrics.csv is replayed from the first step that they lack: a killed process loses what W&B had
    not yet written.

    Args:
        folder: The run's folder.
        run_id: The run's own.
        rows: Of metrics.csv, up to the checkpoint.
        settings: The configuration's `logger`.
        fields: Of `wandb.init`.
    """
    _remove_unsent(folder)
    first = 1 + max(map(last_step, folder.glob("wandb/*run-*/*.wandb")), default=-1)
    if "WANDB_SWEEP_ID" in os.environ:  # an agent's environment goes before what init is given
        os.environ["WANDB_RUN_ID"] = run_id
    with _open_run(folder, settings.mode, id=run_id, project=settings.project, **fields) as run:
        logger = StepLogger(run, max(run.starting_step, first))
        # Pictures that were painted offline do not go online unasked.
        for step, row in _past(rows, folder if settings.paints else None):
            logger.log_metrics(row, step)
        yield logger


def _past(rows: Sequence[Mapping[str, str]], painted: Path | None) -> list[tuple[int, dict[str, Any]]]:
    """Everything that an interrupted run logged, a row for each step in their order, which W&B insists on."""
    steps: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        steps[int(row["step"])] |= {key: float(value) for key, value in row.items() if key != "step"}
    for step, case_id, path in pictures(painted) if painted else ():
        steps[step][f"pictures/{case_id}"] = wandb.Image(str(path))
    return sorted(steps.items())


def last_step(file: Path) -> int:
    """The last step in a file that W&B wrote, which may be cut off anywhere; -1 where there is none.

    The file holds protobuf records in LevelDB's log format behind 7 bytes of header: blocks of 32 KiB, and in
    them chunks with checksum, length and kind (1 whole, 2 first, 3 middle, 4 last).
    """
    data, offset, record, step = file.read_bytes(), 7, b"", -1
    while offset + 7 <= len(data):
        if (left := _BLOCK - offset % _BLOCK) < 7:  # filled up with zeros
            offset += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4) and offset <= len(data):
            history = wandb_internal_pb2.Record.FromString(record).history  # type: ignore[attr-defined]
            steps = [int(item.value_json) for item in history.item if "_step" in (item.key, *item.nested_key)]
            step, record = max([step, *steps]), b""
    return step


@contextmanager
def _open_run(folder: Path, mode: str, **fields: Any) -> Iterator[wandb.Run]:
    """A W&B run under folder/wandb that is closed at the end, as failed where the work failed."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True,
        save_code=False,
        disable_git=True,  # it would show the remote's address
        console="off",
        host="",
        x_disable_meta=True,
        x_save_requirements=False,
    )
    run = wandb.init(dir=folder, mode=mode, settings=settings, resume="allow", **fields)  # type: ignore[arg-type]
    # Multirun jobs share a process: unless each run is closed, the next would go on with it.
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    else:
        run.finish()
    finally:
        if os.environ.pop("WANDB_RUN_ID", None):  # W&B would give the next run of this process that id too
            wandb.teardown()


def require_login(option: str) -> None:
    """Refuses to go online, as `option` asks, without credentials; nothing is sent, no prompt waits."""
    os.environ.setdefault(
        "WANDB_SILENT", "true"
    )  # else login asks the server for the user's name, to print it
    wandb.teardown()  # after an offline run of this process W&B would not look for credentials
    try:
        found, reason = wandb.login(prompt=False, verify=False), ""
    except wandb.Error as error:
        found, reason = False, f" ({error})"
    if not found:
        raise HnsegError(f"{option} needs WANDB_API_KEY in the environment{reason}; set it, or log offline")


def _remove_unsent(folder: Path) -> None:
    """Removes the files of an offline run, unless `wandb sync` has sent some of them."""
    parts = list(folder.glob("wandb/offline-run-*"))
    if not any(any(part.glob("*.synced")) for part in parts):
        for part in parts:
            shutil.rmtree(part)


def log_ablation(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, mode: str = "offline", project: str = "hnseg"
) -> None:
    """Logs an ablation's rows as a table under folder/wandb; again, it replaces what was not sent yet."""
    _remove_unsent(folder)
    columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
    data = [[row.get(str(column)) for column in columns] for row in rows]
    group = folder.resolve().name
    with _open_run(folder, mode, project=project, name="ablation", group=group) as run:
        run.log({"ablation": wandb.Table(columns=columns, data=data, allow_mixed_types=True)})
