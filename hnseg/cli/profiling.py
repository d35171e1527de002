"""Commands on the speed of a training: profile."""

from typing import Annotated

import typer

from hnseg.cli.app import Json, app, write_json


@app.command()
def profile(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="As for train.py; without data.root on made-up patients."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Batches to measure, after five more.")] = 50,
    json_file: Json = None,
) -> None:
    """Train for some steps and tell where time and memory go, and what would help.

    Leaves nothing behind but the cache of data.root (data.cache), which the training takes up.
    """
    from rich.table import Table

    from hnseg.terminal import table_console
    from hnseg.training.profile import advice
    from hnseg.training.profile import profile as measure

    found = measure(overrides or [], steps)
    if json_file is not None:
        write_json(found.figures(), json_file)
    console, training = table_console(), found.config["training"]
    patients = "made-up patients" if found.made_up else found.config["data"]["root"]
    patch = " x ".join(map(str, training["patch"]))
    table = Table(
        title=f"{found.config['arm']}: {found.steps} batches of {found.samples // found.steps} x {patch}"
    )
    for name in ("part of a step", "seconds", "share"):
        table.add_column(name, justify="left" if name.startswith("part") else "right")
    for part, seconds in found.seconds.items():
        table.add_row(part, f"{seconds / found.steps:.3f}", f"{seconds / found.total:.0%}")
    console.print(table)
    figures = [f"{found.samples / found.total:.2f} samples/s", f"peak memory {found.peak_mib / 1024:.1f} GiB"]
    if found.gpu_peak_mib is not None:
        figures.append(f"on the GPU {found.gpu_peak_mib / 1024:.1f} GiB")
    if found.hours is not None:
        figures.append(f"{training['epochs']} epochs take {found.hours:.3g} hours and their validations")
    console.print(f"On {patients}: {', '.join(figures)}", highlight=False)
    console.print(f"{found.device.type} in {found.precision}; {found.loading}", highlight=False)
    for line in advice(found):
        console.print(f"What would help: {line}", highlight=False)
