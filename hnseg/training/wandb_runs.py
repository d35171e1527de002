"""W&B runs: one a run folder, on disk unless asked otherwise; and an ablation's table."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger

from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.training.loggers import Row
from hnseg.training.pictures import picture_key, pictures


class StepLogger(WandbLogger):
    """Logs under the step it is given, whatever belongs to one step as one row.

    Args:
        run: The W&B run.
        first: Steps before this one lie in the run already and are not logged again.
    """

    def __init__(self, run: wandb.Run, first: int) -> None:
        super().__init__(experiment=run)
        self.first = first

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is None or step >= self.first:
            self.experiment.log(dict(metrics), step=step)

    def replay(self, rows: list[Row], folder: Path, *, paints: bool) -> None:
        """Logs the rows of a run that was interrupted, and its pictures where `paints` lets them."""
        steps: dict[int, dict[str, Any]] = defaultdict(dict)
        for row in rows:
            steps[int(row["step"])] |= {key: float(value) for key, value in row.items() if key != "step"}
        for step, case_id, path in pictures(folder) if paints else ():
            steps[step][picture_key(case_id)] = wandb.Image(str(path))
        for step in sorted(steps):  # W&B takes steps in order alone
            self.log_metrics(steps[step], step)


@contextmanager
def wandb_logger(
    folder: Path, rows: list[Row], logged: int, mode: str, *, paints: bool, **fields: Any
) -> Iterator[StepLogger]:
    """The logger of a run folder; its W&B run keeps its id when the run is taken up again.

    W&B cannot append to a file on disk: it begins a second one under the same id, which overlaps the
    first wherever the run was cut off behind its checkpoint. So as long as nothing has been sent, it is
    removed and logged anew from metrics.csv; afterwards nothing is logged again.

    Args:
        folder: The run's folder.
        rows: Of metrics.csv, up to the checkpoint.
        logged: The step after the last one that was logged before the interruption.
        mode: offline or online.
        paints: Earlier pictures may be logged; those painted offline must not go online unasked.
        fields: Of `wandb.init`.

    Raises:
        HnsegError: Online without an API key.
    """
    run_id = _run_id(folder)
    sent = forget_unsent(folder, run_id)
    first = _first_unsent(folder, logged) if sent else 0
    with open_run(folder, mode, id=run_id, **fields) as run:
        logger = StepLogger(run, max(run.starting_step, first))
        logger.replay(rows, folder, paints=paints)
        yield logger


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


def _first_unsent(folder: Path, logged: int) -> int:
    """The step after the last one of any interruption: metrics.csv is cut back with each."""
    path = folder / "wandb" / "run.step"
    first = max(logged, int(path.read_text()) if path.exists() else 0)
    with replacing(path) as temporary:
        temporary.write_text(str(first))
    return first


def forget_unsent(folder: Path, run_id: str) -> bool:
    """Removes files of a run of which `wandb sync` has sent none, and tells whether it has sent any.

    Once it has, the others hold what came after: metrics.csv is logged from there on alone.
    """
    parts = list((folder / "wandb").glob(f"offline-run-*-{run_id}*"))  # W&B numbers those of one second
    sent = any(any(part.glob("*.synced")) for part in parts)
    for part in () if sent else parts:
        shutil.rmtree(part)
    return sent


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
