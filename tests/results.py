"""What infer.py leaves in a folder, in a form in which two runs can be compared."""

import csv
import json
from pathlib import Path
from typing import Any

VARYING = (
    "seconds",
    "_s",
    "_mib",
    "_ns",
)  # how the names of columns and keys end that differ from run to run


def table(out: Path) -> dict[str, dict[str, str]]:
    """The lines of cases.csv by case."""
    with (out / "cases.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def record(out: Path, case_id: str) -> dict[str, Any]:
    """A case's record."""
    return json.loads((out / f"{case_id}.json").read_bytes())


def contents(out: Path) -> dict[str, Any]:
    """Every file's bytes; of cases.csv and the records all but what no two runs share."""
    found: dict[str, Any] = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    found.pop(".last", None)  # of the call, with its paths
    for name in [name for name in found if name.endswith(".json")]:
        found[name] = _common(json.loads(found[name]))
    return found | {"cases.csv": {name: _common(row) for name, row in table(out).items()}}


def _common(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if not key.endswith(VARYING)}
