"""The command line itself, and what its commands have in common."""

from pathlib import Path
from typing import Annotated

import typer

from hnseg import __version__

app = typer.Typer(
    help="Coarse-to-fine segmentation of head-and-neck tumours and lymph nodes in PET/CT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Root = Annotated[Path, typer.Argument(metavar="ROOT", help="A folder in the HECKTOR layout, or a CSV.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: chosen from the cores.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hnseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Coarse-to-fine segmentation of head-and-neck tumours and lymph nodes in PET/CT."""
