"""Commands on the configuration: plan."""

from typing import Annotated

import typer

from hnseg.cli.app import app


@app.command()
def plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="As for train.py; stage= and model= choose the tables."),
    ] = None,
) -> None:
    """Set the configuration beside the paper's tables. Exit status 1 at an unexplained difference."""
    from hnseg.plan.report import print_plan

    if print_plan(overrides or []):
        raise typer.Exit(1)
