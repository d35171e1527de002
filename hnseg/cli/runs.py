"""Commands on runs and sweeps: runs, compare, sweep."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from hnseg.cli.app import Json, app, write_json

Side = Annotated[Path, typer.Argument(help="A run's folder, or an arm's with several folds.")]


@app.command()
def runs(
    root: Annotated[Path, typer.Argument(metavar="[ROOT]", help="Where train.py writes.")] = Path("runs"),
    json_file: Json = None,
) -> None:
    """List runs: how far they are, their best score and the time left."""
    from hnseg.runs import find_runs

    found = find_runs(root, strict=False)
    rows = [
        [
            str(run.path.relative_to(root)),
            run.stage,
            run.model,
            run.fold,
            "" if run.damage else f"{run.epoch}/{run.epochs}",
            "" if run.best is None else f"{run.best:.4f}",
            run.state,
            "" if not run.seconds_left else str(timedelta(seconds=round(run.seconds_left))),
        ]
        for run in found
    ]
    _print(["run", "stage", "model", "fold", "epoch", "best", "state", "left"], rows)
    for run in found:
        if run.damage:
            print(run.damage, file=sys.stderr)
    if json_file:
        write_json({"runs": [run.to_dict() for run in found]}, json_file)


@app.command()
def compare(a: Side, b: Side, json_file: Json = None) -> None:
    """Show what differs between two runs in configuration and score."""
    from hnseg.runs import compare_runs

    settings, scores, folds = compare_runs(a, b)
    rows = [[key, _shown(ours), _shown(theirs), ""] for key, (ours, theirs) in settings.items()]
    rows += [[key, f"{x:.4f}", f"{y:.4f}", f"{y - x:+.4f}"] for key, (x, y) in scores.items()]
    _print(["", str(a), str(b), "difference"], rows)
    if not settings:
        print("no setting differs")
    if {"fold", "split.json"} & settings.keys():
        print("warning: other folds, so that the scores are of other cases as well", file=sys.stderr)
    print(
        f"scores: means over {folds} folds" if folds > 1 else "" if folds else "no scores: not both finished"
    )
    if json_file:
        write_json({"settings": settings, "scores": scores, "folds": folds}, json_file)


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A file of sweeps/, without .yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for train.py, for every job.")
    ] = None,
) -> None:
    """Print a sweep as a W&B sweep file, for `wandb sweep` and `wandb agent`."""
    import yaml

    from hnseg.sweeps import wandb_sweep

    given = overrides or []
    print(yaml.safe_dump(wandb_sweep(name, given), sort_keys=False, width=100), end="")
    if "logger.mode=online" not in given:
        print("W&B sees nothing of these runs; add logger.mode=online where they may leave", file=sys.stderr)


def _print(columns: list[str], rows: list[list[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from hnseg.terminal import table_console

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    table_console().print(table)


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
