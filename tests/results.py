"""What infer.py leaves in a folder, told in a form in which two runs can be compared."""

import csv
from pathlib import Path
from typing import Any

VARYING = ("seconds", "read_s", "head_s", "coarse_s", "fine_s", "write_s", "memory_mib", "gpu_mib")


def table(out: Path) -> dict[str, dict[str, str]]:
    """The lines of cases.csv by case."""
    with (out / "cases.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def contents(out: Path) -> dict[str, Any]:
    """Every file's bytes; of cases.csv all but what no two runs share."""
    rows = {name: {k: v for k, v in row.items() if k not in VARYING} for name, row in table(out).items()}
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return files | {"cases.csv": rows}
