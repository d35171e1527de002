"""What a run has logged so far: the rows of its metrics.csv, cut back to where it is taken up again."""

from __future__ import annotations

import csv
from pathlib import Path

Row = dict[str, str]


def read_rows(folder: Path) -> list[Row]:
    """The rows of metrics.csv without their empty cells, oldest first."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def before(rows: list[Row], step: int) -> list[Row]:
    """Rows of the steps before one: what was logged after the last checkpoint will be logged again."""
    return [row for row in rows if int(row["step"]) < step]


def next_step(rows: list[Row]) -> int:
    """The step after the last one logged."""
    return 1 + max((int(row["step"]) for row in rows), default=-1)
