"""The command line itself, and what its commands have in common."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hnseg import __version__
from hnseg.errors import HnsegError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
)
# The groups of --help, in the order of a study.
DATA, TRAIN, INFER, EVALUATE, SHARE = "Data", "Train", "Infer", "Evaluate", "Share"

# Of commands whose arguments are Hydra's, --help included.
HYDRA = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def exists(given: Any) -> Any:
    """Refuses a path, or one of several, that is not there, before a command imports what it works with."""
    for path in given if isinstance(given, list) else [given]:
        if path is not None and not path.exists():
            raise HnsegError(f"{path}: no such file or folder; check the path")
    return given


Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="A folder in the HECKTOR layout, or a CSV.", callback=exists)
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: chosen from the cores.")]


def say(text: str) -> None:
    """Says on stderr what a command is about to do, before it imports what takes seconds."""
    print(text, file=sys.stderr, flush=True)


def suggest(command: str) -> None:
    """Ends a command with the next one to type."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"next: {command}", style="dim", markup=False)


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
    """Finds head-and-neck tumours (GTVp) and lymph nodes (GTVn) in PET/CT, coarse to fine."""
