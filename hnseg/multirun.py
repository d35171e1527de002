"""What becomes of the jobs of a sweep: all of them run, and a table says how each went."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.markup import escape
from rich.table import Table

from hnseg.errors import HnsegError
from hnseg.hydra_errors import explain
from hnseg.run_folder import Score
from hnseg.terminal import table_console

_taken: dict[Path, int] = {}
_OUTCOMES = {"fresh": "trained", "interrupted": "resumed", "finished": "skipped"}


def collect_jobs() -> list[JobReturn]:
    """Makes Hydra gather a sweep's jobs, where it raises the error of the first that failed.

    Launchers run all jobs of a batch and hand them to the sweeper, which looks at what each returned: in
    the sweep's own process, whichever launcher it was.

    Returns:
        The list that fills while sweepers look.
    """
    jobs: list[JobReturn] = []

    def return_value(job: JobReturn) -> Any:
        failed = job.status is JobStatus.FAILED
        if job.hydra_cfg and job.hydra_cfg.hydra.mode == RunMode.MULTIRUN:
            if all(job is not known for known in jobs):
                jobs.append(job)
            return None if failed else job._return_value
        if failed:
            raise job._return_value
        return job._return_value

    JobReturn.return_value = JobReturn.return_value.getter(return_value)  # type: ignore[attr-defined, method-assign]
    return jobs


def take_folder(folder: Path) -> None:
    """Notes whose folder it is within a sweep, for jobs that run in one process.

    Raises:
        HnsegError: An earlier job of the sweep has had it: one of them would replace the other's run.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    job = HydraConfig.get().job.num
    if _taken.setdefault(folder.resolve(), job) != job:
        raise HnsegError(
            f"{folder}: another job of this sweep trains there; put what differs between them into arm, as "
            "in 'arm=seed_${seed}'"
        )


def report_jobs(jobs: Sequence[JobReturn]) -> None:
    """Prints what ran, was skipped and failed, with run folders and scores.

    Raises:
        Exception: What the first failed job ended with, a defect rather than a user's mistake; a note says
            which job that was.
    """
    if not jobs:
        return
    common = set.intersection(*(set(job.overrides or ()) for job in jobs)) if len(jobs) > 1 else set()
    titles = [" ".join(text for text in job.overrides or () if text not in common) for job in jobs]
    failures = [(job._return_value, title) for job, title in zip(jobs, titles, strict=True) if _failed(job)]
    console = table_console()
    console.print(_table(jobs, titles))
    for error, title in failures:
        console.print(f"failed: {title}: {_reason(error)}", markup=False, highlight=False, soft_wrap=True)
    if failures:
        error, title = next((one for one in failures if explain(one[0]) is None), failures[0])
        more = f", and {len(failures) - 1} more failed" if len(failures) > 1 else ""
        error.add_note(f"in the job {title}{more}")
        raise error


def _table(jobs: Sequence[JobReturn], titles: Sequence[str]) -> Table:
    counts: dict[str, int] = {}
    table = Table(title_justify="left", box=None, pad_edge=False)
    for name in ("job", "outcome", "val/dice", "run"):
        table.add_column(name, justify="right" if name == "val/dice" else "left", overflow="fold")
    for job, title in zip(jobs, titles, strict=True):
        outcome, score, folder = _row(job)
        counts[outcome] = counts.get(outcome, 0) + 1
        table.add_row(escape(title), outcome, score, escape(folder))
    table.title = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return table


def _row(job: JobReturn) -> tuple[str, str, str]:
    """Outcome, score and run folder."""
    if _failed(job):
        return "failed", "", _folder(job)
    result = job._return_value
    if not isinstance(result, Score):
        return "done", "", ""
    return _OUTCOMES[result.state], f"{result:.4f}", os.path.relpath(result.folder)


def _folder(job: JobReturn) -> str:
    """The run folder of a job that failed after it had begun there."""
    if job.cfg is None or job.hydra_cfg is None:
        return ""
    HydraConfig.instance().set_config(job.hydra_cfg)  # names may be made of Hydra's own choices
    folder = OmegaConf.select(job.cfg, "run_dir")
    return os.path.relpath(folder) if folder and Path(folder).is_dir() else ""


def _failed(job: JobReturn) -> bool:
    return job.status is JobStatus.FAILED


def _reason(error: Exception) -> str:
    """One line; that of a defect has its type."""
    return explain(error) or " ".join(f"{type(error).__name__}: {error}".split())
