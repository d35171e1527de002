"""The command that a challenge's container runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hnseg.cli.app import app


@app.command()
def challenge(
    model: Annotated[Path, typer.Option(metavar="BUNDLE", help="The trained members; only read.")],
    source: Annotated[Path, typer.Option("--input", metavar="DIR", help="Holds images/ct and images/pet.")],
    out: Annotated[Path, typer.Option("--output", metavar="DIR", help="The mask goes below it.")],
    interface: Annotated[Literal["2025", "2026"], typer.Option(help="The edition of HECKTOR.")] = "2025",
) -> None:
    """Segment the one study of a grand-challenge container."""
    from hnseg.container import INTERFACES, segment_study
    from hnseg.quiet import quiet

    quiet()
    target, result = segment_study(source, out, model, INTERFACES[interface])
    for fallback in result.fallbacks:
        print(fallback)
    print(f"{target}: {sum(result.seconds.values()):.0f} s")
