"""metrics.csv, whole at any moment: what a killed run goes on with, and W&B and the reports are made of."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
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
        self.columns: list[str] = []
        self.text = self.written = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row, which `save` writes."""
        row = {**metrics, "step": step}
        self.rows.append(row)
        if row.keys() <= set(self.columns):
            self.text += _lines(self.columns, [row])  # all anew would take longer with every epoch
        else:
            self.columns = sorted({key for row in self.rows for key in row})
            self.text = _lines(self.columns, [dict(zip(self.columns, self.columns, strict=True)), *self.rows])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.json has them."""

    def save(self) -> None:
        """Replaces the file where rows are new; Lightning asks for it after each.

        Raises:
            HnsegError: It cannot be written.
        """
        if self.text != self.written:
            with replacing(self.path) as temporary:
                temporary.write_text(self.text, encoding="utf-8", newline="")
            self.written = self.text


def _lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as lines of the file; a cell is empty where a row has no such column."""
    lines = StringIO(newline="")
    csv.DictWriter(lines, columns).writerows(rows)
    return lines.getvalue()
