"""The command that writes the page people look at: report."""

from pathlib import Path
from typing import Annotated

import typer

from hnseg.cli.app import app


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What infer.py wrote.")],
    truth: Annotated[
        Path | None, typer.Option(metavar="ROOT", help="The cohort; default: the one the ablation names.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="ROOT", help="The CT and PET to draw on; default: the cohort's.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: OUT/report.html.")] = None,
    arm: Annotated[
        str | None, typer.Option(help="The arm whose cases are drawn; default: the first.")
    ] = None,
    viewer_mb: Annotated[
        float, typer.Option(min=0, help="Room for the viewer's volumes; further cases have pictures alone.")
    ] = 100,
) -> None:
    """Write one HTML file with scores, plots and every case's pictures, to open without a network."""
    from hnseg.report.page import write_report

    html = html or out / "report.html"
    gallery = write_report(out, html, truth=truth, images=images, arm=arm, viewer_mb=viewer_mb)
    print(f"{html}: {len(gallery.cases)} cases, {html.stat().st_size / 1e6:.1f} MB")
    if gallery.without_viewer:
        print(f"{gallery.without_viewer} of them without the viewer, see --viewer-mb")
