"""What infer.py leaves in a folder, told in a form in which two runs can be compared."""

import csv
from pathlib import Path
from typing import Any

VARYING = ("seconds", "_s", "_mib")  # how the names of columns end that differ from run to run


def table(out: Path) -> dict[str, dict[str, str]]:
    """The lines of cases.csv by case."""
    with (out / "cases.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def contents(out: Path) -> dict[str, Any]:
    """Every file's bytes; of cases.csv all but what no two runs share."""
    rows = {
        name: {key: value for key, value in row.items() if not key.endswith(VARYING)}
        for name, row in table(out).items()
    }
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return files | {"cases.csv": rows}
