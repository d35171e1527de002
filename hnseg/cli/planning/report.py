"""`hnseg plan`: the tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rich.table
from rich.console import Console
from rich.markup import escape

from hnseg.cli.planning.decision import read_decision
from hnseg.cli.planning.network import read_network
from hnseg.cli.planning.pair import Pair
from hnseg.cli.planning.table import Row, Table, compare, read_errata, read_tables
from hnseg.cli.planning.training import read_training
from hnseg.cli.planning.volume import read_volume
from hnseg.errors import HnsegError
from hnseg.files import table_console


def print_plan(overrides: Sequence[str]) -> int:
    """Prints the paper's tables beside what the configuration makes of them.

    Args:
        overrides: As train.py takes them; `stage=` and `model=` choose the tables; all, without them.

    Returns:
        The number of differences that no erratum explains.

    Raises:
        HnsegError: What train.py would refuse too, or a stage and model that are in no table.
    """
    tables, rest = choose(overrides)
    console = table_console()
    rows: list[Row] = []
    used: dict[tuple[str, str], dict[str, Any]] = {}
    for table in tables:
        key = table.stage, table.model
        if key not in used:
            used[key] = read(Pair.compose([f"stage={table.stage}", f"model={table.model}", *rest]))
        compared = compare(table, used[key], read_errata())
        _print(table, compared, console)
        rows += compared
    errata = sum(row.erratum is not None for row in rows)
    unexplained = [row for row in rows if not row.explained]
    console.print(
        f"{len(rows)} values: {len(rows) - errata - len(unexplained)} as printed, {errata} explained by an "
        f"erratum, {len(unexplained)} DIFFERENT",
        highlight=False,
    )
    return len(unexplained)


def choose(overrides: Sequence[str]) -> tuple[list[Table], list[str]]:
    """The tables that a command line speaks of, and its other overrides.

    Raises:
        HnsegError: No table describes the stage and model.
    """
    chosen = {key: value for key, _, value in (one.partition("=") for one in overrides)}
    rest = [one for one in overrides if one.partition("=")[0] not in ("stage", "model")]
    tables = [
        table
        for table in read_tables()
        if (chosen.get("stage", table.stage), chosen.get("model", table.model)) == (table.stage, table.model)
    ]
    if not tables:
        pairs = ", ".join(dict.fromkeys(f"stage={t.stage} model={t.model}" for t in read_tables()))
        named = " ".join(one for one in overrides if one not in rest)
        raise HnsegError(f"{named}: no table of the paper; choose of {pairs}")
    return tables, rest


def read(pair: Pair) -> dict[str, Any]:
    """All that the tables may ask of a stage and network: property → value."""
    network = read_network(pair.module.network)
    training = read_training(pair, network["Supervised Depths"])
    return {**network, **training, **read_volume(pair), **read_decision(pair)}


def _print(table: Table, rows: Sequence[Row], console: Console) -> None:
    title = f"{table.name}: {table.title} (stage={table.stage} model={table.model})"
    printed = rich.table.Table(title=title, title_justify="left")
    for column in ("Property", "Paper", "hnseg", ""):
        printed.add_column(column, overflow="fold")
    for row in rows:
        printed.add_row(row.name, *(escape(_text(value)) for value in (row.printed, row.used)), _mark(row))
    console.print(printed)


def _mark(row: Row) -> str:
    if row.erratum:
        return f"[yellow]erratum[/]: {escape(row.erratum.reason)}"
    return "same" if row.explained else "[bold red]DIFFERENT[/]"


def _text(value: Any) -> str:
    """A value as a reader expects it: `1 × 2 × 2`, `layer ReLU, inplace yes`."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case dict():
            return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
        case list():
            if any(isinstance(one, dict) for one in value):
                return "; ".join(_text(one) for one in value)
            inner = ", ".join(_text(one) for one in value)
            return inner if any(isinstance(one, str) for one in value) else f"[{inner}]"
    return str(value)
