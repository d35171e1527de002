"""The command that sets the paper's tables beside the composed configuration: plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any

import typer

from hnseg.card import plain
from hnseg.cli.app import TRAIN, app
from hnseg.files import print_table


@dataclass(frozen=True)
class Row:
    """One property of a table.

    Args:
        name: The property.
        paper: What the paper prints.
        used: What the configuration holds: key → value.
        same: Whether that is what the paper asks for.
        reason: Why it is not, from the errata; None where no erratum fits.
    """

    name: str
    paper: str
    used: Mapping[str, Any]
    same: bool
    reason: str | None = None

    @property
    def cells(self) -> list[str]:
        """The row as it is printed."""
        used = "\n".join(f"{key} = {value}" for key, value in self.used.items())
        mark = f"erratum: {self.reason}" if self.reason else "same" if self.same else "DIFFERENT"
        return [self.name, self.paper, used, mark]


@app.command(rich_help_panel=TRAIN)
def plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="As for hnseg train; stage= and model= choose the tables."),
    ] = None,
    differences: Annotated[
        bool, typer.Option("--differences", help="Only rows where the two differ.")
    ] = False,
) -> None:
    """Set the configuration beside the paper's tables. Exit status 1 at an unexplained difference."""
    tables, rest = choose(overrides or [])
    configs = {
        pair: compose([f"stage={pair[0]}", f"model={pair[1]}", *rest])
        for pair in dict.fromkeys((table["stage"], table["model"]) for table in tables.values())
    }
    rows: list[Row] = []
    for name, table in tables.items():
        compared = compare(name, table["rows"], configs[table["stage"], table["model"]])
        title = f"{name}: {table['title']} (stage={table['stage']} model={table['model']})"
        shown = [row.cells for row in compared if not (differences and row.same)]
        if shown:
            print_table(["Property", "Paper", "hnseg", ""], shown, title)
        rows += compared
    explained = sum(not row.same and row.reason is not None for row in rows)
    different = sum(not row.same and row.reason is None for row in rows)
    print(
        f"{len(rows)} rows: {len(rows) - explained - different} as the paper has them, {explained} explained "
        f"by an erratum, {different} DIFFERENT"
    )
    if different:
        raise typer.Exit(1)


def read_yaml(name: str) -> Any:
    """What tables.yaml or errata.yaml beside this module holds."""
    import yaml

    return yaml.safe_load(files("hnseg.cli").joinpath(name).read_text(encoding="utf-8"))


def choose(overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The tables of the stage and model in a command line, and its other overrides.

    Raises:
        HnsegError: The paper has no table of them.
    """
    from hnseg.errors import HnsegError

    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    chosen = {key: given[key] for key in ("stage", "model") if key in given}
    rest = [override for override in overrides if override.split("=")[0] not in chosen]
    tables = read_yaml("tables.yaml")
    fitting = {name: table for name, table in tables.items() if chosen.items() <= table.items()}
    if not fitting:
        pairs = dict.fromkeys(f"stage={table['stage']} model={table['model']}" for table in tables.values())
        asked = " ".join(f"{key}={value}" for key, value in chosen.items())
        raise HnsegError(f"{asked}: the paper has no table of it; choose of {', '.join(pairs)}")
    return fitting, rest


def compose(overrides: Iterable[str]) -> dict[str, Any]:
    """The configuration of a command line of hnseg train."""
    from hnseg.config import compose_job

    config: dict[str, Any] = plain(compose_job(list(overrides)))
    return config


def compare(table: str, rows: Mapping[str, Any], config: Mapping[str, Any]) -> list[Row]:
    """Sets the configuration beside the rows of a table.

    Args:
        table: Its name.
        rows: Property → the keys that decide it with the paper's values, and `paper`, the printed text.
        config: The composed configuration, resolved.
    """
    errata = {erratum["row"]: erratum for erratum in read_yaml("errata.yaml") if table in erratum["tables"]}
    compared = []
    for name, row in rows.items():
        wanted = {key: value for key, value in row.items() if key != "paper"}
        printed = str(row.get("paper", ", ".join(map(str, wanted.values()))))
        erratum = errata.get(name)
        expected = erratum.get("used", {}) if erratum else {}
        holds = all(_lookup(config, key) == value for key, value in expected.items())
        used = {key: _lookup(config, key) for key in wanted | expected}
        same = bool(wanted) and all(used[key] == value for key, value in wanted.items())
        reason = erratum["reason"] if erratum and holds and not same else None
        compared.append(Row(name, printed, used, same, reason))
    return compared


def _lookup(config: Any, key: str) -> Any:
    """The value of a dotted key; None where the configuration has no such key."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
