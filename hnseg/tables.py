"""CSV tables that hnseg wrote, as they are read again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from hnseg.errors import HnsegError


def read_table(
    path: Path, remedy: str, needed: Sequence[str] = ()
) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; none where there is no such file.

    Args:
        path: The file.
        remedy: What to do about one that cannot be read.
        needed: Columns that it must have.

    Raises:
        HnsegError: It cannot be read, lacks a column, or has a row of another width than its header.
    """
    if not path.exists():
        return (), []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), []
            if missing := [name for name in needed if name not in columns]:
                found = ",".join(columns)
                raise HnsegError(f"{path}: has no columns {' and '.join(missing)}, only {found!r}; {remedy}")
            for row in reader:
                if None in row or None in row.values():
                    where = f"{path} line {reader.line_num}"
                    raise HnsegError(f"{where}: not as many cells as the {len(columns)} columns; {remedy}")
                rows.append(row)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise HnsegError(f"{path}: cannot be read ({error}); {remedy}") from error
    return columns, rows
