"""The tables in OUT, as they are read again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from hnseg.errors import HnsegError


def read_table(path: Path, remedy: str) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; none where there is no such file.

    Args:
        path: The file.
        remedy: What to do about one that cannot be read.

    Raises:
        HnsegError: It cannot be read.
    """
    if not path.exists():
        return (), []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise HnsegError(f"{path}: cannot be read ({error}); {remedy}") from error
    return reader.fieldnames or (), rows
