"""What a run has logged so far: the rows of its metrics.csv, cut back to where it is taken up again."""

from __future__ import annotations

from pathlib import Path

from hnseg.errors import HnsegError
from hnseg.tables import read_table

Row = dict[str, str]


def read_rows(folder: Path) -> list[Row]:
    """The rows of metrics.csv without their empty cells, oldest first.

    Raises:
        HnsegError: It is damaged.
    """
    path = folder / "metrics.csv"
    remedy = "put it back, or move it away: the run goes on without its rows"
    _, rows = read_table(path, remedy, ("step",))
    odd = next((row["step"] for row in rows if not row["step"].isdecimal()), None)
    if odd is not None:
        raise HnsegError(f"{path}: step {odd!r} is no number; {remedy}")
    return [{key: value for key, value in row.items() if value} for row in rows]


def before(rows: list[Row], step: int) -> list[Row]:
    """Rows of the steps before one: what was logged after the last checkpoint will be logged again."""
    return [row for row in rows if int(row["step"]) < step]


def next_step(rows: list[Row]) -> int:
    """The step after the last one logged."""
    return 1 + max((int(row["step"]) for row in rows), default=-1)
