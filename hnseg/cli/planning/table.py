"""The paper's values, the errata, and how the two account for what hnseg really uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Table:
    """What the paper says about one stage and network.

    Args:
        name: `Table 1` to `Table 4` as printed; `Text 1` to `Text 4` what else the paper and the authors'
            release say about the same pair.
        title: What it is about.
        stage: The stage of the configuration that it describes.
        model: The model of the configuration that it describes.
        rows: Property → value. A mapping speaks of the aspects that it names and of no others.
    """

    name: str
    title: str
    stage: str
    model: str
    rows: Mapping[str, Any]


@dataclass(frozen=True)
class Erratum:
    """Why hnseg uses another value than the one printed in one row.

    Args:
        table: Name of the table.
        row: Property.
        printed: The table's value.
        used: What hnseg uses.
        reason: Why.
    """

    table: str
    row: str
    printed: Any
    used: Any
    reason: str


@dataclass(frozen=True)
class Row:
    """One property, printed and used; `erratum` where the two differ and it is known why."""

    name: str
    printed: Any
    used: Any
    erratum: Erratum | None = None

    @property
    def explained(self) -> bool:
        """Whether the values agree, or an erratum says why they do not."""
        return self.printed == self.used or self.erratum is not None


def read_tables() -> list[Table]:
    """The committed tables."""
    return [Table(name=name, **fields) for name, fields in _read("tables.yaml").items()]


def read_errata() -> list[Erratum]:
    """The committed errata; one that holds for several tables is one for each."""
    return [Erratum(table=name, **fields) for fields in _read("errata.yaml") for name in fields.pop("tables")]


def compare(table: Table, used: Mapping[str, Any], errata: Iterable[Erratum]) -> list[Row]:
    """Sets what is used beside what is printed.

    An erratum counts only where it names both values as they are: one that is out of date explains nothing.

    Args:
        table: The table.
        used: Property → value, of all the table's properties.
        errata: Those of this table are looked at.
    """
    known = {one.row: one for one in errata if one.table == table.name}
    rows = []
    for name, printed in table.rows.items():
        value = used[name]
        if isinstance(printed, dict) and isinstance(value, dict):
            value = {aspect: value.get(aspect) for aspect in printed}
        erratum = known.get(name)
        fits = erratum and printed != value and (erratum.printed, erratum.used) == (printed, value)
        rows.append(Row(name, printed, value, erratum if fits else None))
    return rows


def _read(name: str) -> Any:
    return yaml.safe_load(files("hnseg.cli.planning").joinpath(name).read_text(encoding="utf-8"))
