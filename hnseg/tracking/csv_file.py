"""metrics.csv, whole at any moment: what a killed run goes on with, and W&B and the reports are made of."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from hnseg.files import replacing
from hnseg.tracking.history import Row


class CsvFile(Logger):
    """Logs into one file that is replaced as a whole; Lightning's own logger removes it to go on with it.

    Args:
        path: The file.
        rows: What it begins with: those of an interrupted run up to its checkpoint.
    """

    name, version = "", ""  # of a folder that Lightning would make

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        super().__init__()
        self.path = path
        self.rows: list[Mapping[str, Any]] = list(rows)
        self.written = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row, which `save` writes."""
        self.rows.append({**metrics, "step": step})
        self.written = False

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.json has them."""

    def save(self) -> None:
        """Replaces the file where rows are new; Lightning asks for it after each.

        Raises:
            HnsegError: It cannot be written.
        """
        if self.written:
            return
        columns = sorted({key for row in self.rows for key in row})
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self.rows)
        self.written = True
