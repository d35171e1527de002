"""An ablation on W&B: its table, and a summary run an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hnseg.tracking.settings import LoggerSettings


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
        HnsegError: An unknown mode, or online without an API key.
    """
    LoggerSettings("wandb", mode, project)  # refuses what it does not know
    from hnseg.tracking.wandb_runs import forget_unsent, kept_id, open_run

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
