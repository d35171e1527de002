"""W&B runs: one a run folder, on disk unless asked otherwise; and an ablation's table."""

from __future__ import annotations

import os
import secrets
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

from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.training.loggers import Row
from hnseg.training.pictures import picture_key, pictures

_BLOCK = 2**15  # bytes


class StepLogger(WandbLogger):
    """Logs under the step it is given; what belongs to one step is one row.

    Args:
        run: The W&B run.
        first: Steps before this one lie in the run already and are not logged again.
    """

    def __init__(self, run: wandb.Run, first: int) -> None:
        super().__init__(experiment=run)
        self.first = first

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs one row."""
        if step is None or step >= self.first:
            self.experiment.log(dict(metrics), step=step)

    def replay(self, rows: list[Row], folder: Path, *, paints: bool) -> None:
        """Logs the rows of an interrupted run, and its pictures where `paints` allows them."""
        steps: dict[int, dict[str, Any]] = defaultdict(dict)
        for row in rows:
            steps[int(row["step"])] |= {key: float(value) for key, value in row.items() if key != "step"}
        for step, case_id, path in pictures(folder) if paints else ():
            steps[step][picture_key(case_id)] = wandb.Image(str(path))
        for step in sorted(steps):  # W&B takes steps in order alone
            self.log_metrics(steps[step], step)


@contextmanager
def wandb_logger(
    folder: Path, rows: list[Row], mode: str, *, paints: bool, **fields: Any
) -> Iterator[StepLogger]:
    """The logger of a run folder; a resumed run keeps its W&B id.

    W&B cannot append to a file on disk: it begins another under the same id. As long as nothing has been
    sent, earlier files are removed and metrics.csv is replayed whole. Once something has been sent, they
    stay, and metrics.csv is replayed from the first step that they lack: a killed process loses what W&B had
    not yet written.

    Args:
        folder: The run's folder.
        rows: Of metrics.csv, up to the checkpoint.
        mode: offline or online.
        paints: Earlier pictures may be logged; those painted offline must not go online unasked.
        fields: Of `wandb.init`.

    Raises:
        HnsegError: Online without an API key.
    """
    run_id = _run_id(folder)
    forget_unsent(folder, run_id)
    first = 1 + max(map(last_step, folder.glob(f"wandb/*run-*-{run_id}*/*.wandb")), default=-1)
    with open_run(folder, mode, id=run_id, **fields) as run:
        logger = StepLogger(run, max(run.starting_step, first))
        logger.replay(rows, folder, paints=paints)
        yield logger


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
def open_run(folder: Path, mode: str, **fields: Any) -> Iterator[wandb.Run]:
    """A W&B run under folder/wandb that is closed at the end, as failed where the work failed.

    Neither mode ever waits for an answer at a prompt.
    """
    _set_mode(mode)
    if mode == "online":
        require_login("logger.mode=online")
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        save_code=False,
        disable_git=True,  # it would tell the remote's address
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
    """Refuse to go online without credentials; nothing is sent, and no prompt waits for an answer.

    Args:
        option: What asked for it.

    Raises:
        HnsegError: There are none, or they cannot be any.
    """
    wandb.teardown()  # after an offline run of this process W&B would not look for credentials
    _set_mode("online")
    try:
        found, reason = wandb.login(prompt=False, verify=False), ""
    except wandb.Error as error:
        found, reason = False, f" ({error})"
    if not found:
        raise HnsegError(f"{option} needs WANDB_API_KEY in the environment{reason}; set it, or log offline")


def _set_mode(mode: str) -> None:
    os.environ["WANDB_MODE"] = mode
    os.environ.setdefault("WANDB_SILENT", "true")


def _run_id(folder: Path) -> str:
    """The folder's id: that which a sweep's agent gave the run where it began there.

    A run that was begun before keeps its own, lest it become two; W&B takes it from an agent's environment
    alone.
    """
    if "WANDB_SWEEP_ID" not in os.environ:
        return kept_id(folder)
    os.environ["WANDB_RUN_ID"] = kept_id(folder, new=os.environ.get("WANDB_RUN_ID"))
    return os.environ["WANDB_RUN_ID"]


def kept_id(folder: Path, name: str = "run", new: str | None = None) -> str:
    """The W&B id of what lies in a folder, `new` or drawn once: two machines may have runs of one name."""
    path = folder / "wandb" / f"{name}.id"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(new or secrets.token_hex(8))
    return path.read_text()


def forget_unsent(folder: Path, run_id: str) -> None:
    """Removes the files of an offline run, unless `wandb sync` has sent some of them."""
    parts = list((folder / "wandb").glob(f"offline-run-*-{run_id}*"))  # W&B numbers those of one second
    if not any(any(part.glob("*.synced")) for part in parts):
        for part in parts:
            shutil.rmtree(part)


def log_ablation(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, mode: str = "offline", project: str = "hnseg"
) -> None:
    """Logs one run with all rows as a table, and one run an arm whose summary holds the arm's scores.

    All are of one group, the folder's name. Logged again, they replace what was not sent yet.

    Args:
        folder: The ablation's folder; W&B's files lie in its folder `wandb`.
        rows: Flat, an arm each or an arm and a centre, with `arm` and `center` (None for all patients). A
            centre's scores stand in the summary as CENTER/SCORE.
        mode: offline or online.
        project: W&B project.

    Raises:
        HnsegError: Online without an API key.
    """

    def opened(name: str, job_type: str) -> Any:
        run_id = kept_id(folder, name)
        forget_unsent(folder, run_id)
        tags = ["ablation", *({name} - {"ablation"})]
        fields = {"name": name, "group": folder.resolve().name, "job_type": job_type, "tags": tags}
        return open_run(folder, mode, id=run_id, project=project, **fields)

    with opened("ablation", "ablation") as run:
        run.log({"ablation": _table(rows)})
    for arm in dict.fromkeys(row["arm"] for row in rows):
        with opened(arm, "ablation_arm") as run:
            run.summary.update(_summary([row for row in rows if row["arm"] == arm]))


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[str | int] = list(dict.fromkeys(key for row in rows for key in row))
    data = [[row.get(str(column)) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is known of one arm, that of a centre under its name."""
    return {
        f"{row['center']}/{key}" if row.get("center") else key: value
        for row in rows
        for key, value in row.items()
        if value is not None and key != "center"
    }
