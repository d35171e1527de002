"""Commands around training: profile, runs, compare, sweep."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from hnseg.card import plain
from hnseg.cli.app import TRAIN, Json, app, exists, say, suggest
from hnseg.files import print_table, write_json


@app.command(rich_help_panel=TRAIN)
def profile(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="As for hnseg train; without data.root on synthetic patients."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Batches to measure, after five more.")] = 50,
    json_file: Json = None,
) -> None:
    """Train for some steps, and show where time and memory go and what would help.

    Leaves nothing behind but the cache of data.root (data.cache), which the training takes up.
    """
    from hnseg.config import compose_job

    exists(compose_job(overrides or []).data.root)
    say(f"profiling {steps} batches of hnseg train {' '.join(overrides or [])}")
    from hnseg.training.profile import advice
    from hnseg.training.profile import profile as measure

    found = measure(overrides or [], steps)
    if json_file is not None:
        write_json(found.figures(), json_file)
    training = found.job.training
    patch = " x ".join(map(str, training.patch))
    title = f"{found.job.arm}: {found.steps} batches of {found.samples // found.steps} x {patch}"
    rows = [
        [part, f"{seconds / found.steps:.3f}", f"{seconds / found.total:.0%}"]
        for part, seconds in found.seconds.items()
    ]
    print_table(["part of a step", "seconds", "share"], rows, title)
    figures = [f"{found.samples / found.total:.2f} samples/s", f"peak memory {found.peak_mib / 1024:.1f} GiB"]
    if found.gpu_peak_mib is not None:
        figures.append(f"on the GPU {found.gpu_peak_mib / 1024:.1f} GiB")
    if found.hours is not None:
        figures.append(f"{training.epochs} epochs take {_duration(3600 * found.hours)} and their validations")
    patients = "synthetic patients" if found.synthetic else found.job.data.root
    print(f"On {patients}: {', '.join(figures)}")
    print(f"{found.device.type} in {found.precision}; {found.loading}")
    for line in advice(found):
        print(f"What would help: {line}")
    suggest(f"hnseg train {' '.join(overrides or [])}")


Side = Annotated[
    Path, typer.Argument(help="A run's folder, or an arm's with several folds.", callback=exists)
]


@app.command(rich_help_panel=TRAIN)
def runs(
    root: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where train writes.", callback=exists)
    ] = Path("runs"),
    sort: Annotated[
        Literal["date", "score", "name", "left"],
        typer.Option(help="Newest, best or soonest ready first, or by folder."),
    ] = "date",
    json_file: Json = None,
) -> None:
    """List runs: when they began, how far they are, their best score and the time left."""
    from hnseg.training.runs import find_runs, sort_runs

    found = sort_runs(find_runs(root), sort)
    rows = [
        [
            str(run.path.relative_to(root)),
            run.began[:16].replace("T", " "),
            f"{run.epoch}/{run.epochs}",
            "" if run.best is None else f"{run.best:.4f}",
            run.state,
            _duration(run.seconds),
            _duration(run.seconds_left),
        ]
        for run in found
    ]
    print_table(["run", "began", "epoch", "best", "state", "took", "left"], rows)
    if json_file:
        write_json({"runs": plain(found)}, json_file)


def _duration(seconds: float | None) -> str:
    """Hours and minutes, such as 3:05 h; under an hour, minutes and seconds, such as 3:05 min."""
    if not seconds:
        return ""
    whole, part, unit = (*divmod(round(seconds), 60), "min")
    if whole >= 60:
        whole, part, unit = (*divmod(round(seconds / 60), 60), "h")
    return f"{whole}:{part:02} {unit}"


@app.command(rich_help_panel=TRAIN)
def compare(a: Side, b: Side, json_file: Json = None) -> None:
    """Show what differs between two runs in configuration and score."""
    from hnseg.training.runs import compare_runs

    settings, scores, folds = compare_runs(a, b)
    console = Console(soft_wrap=True, highlight=False)
    shown = {key: tuple(map(_shown, pair)) for key, pair in settings.items()}
    long = {key: pair for key, pair in shown.items() if max(map(len, pair)) > _WIDEST}
    rows = [[key, *pair, ""] for key, pair in shown.items() if key not in long]
    rows += [[key, f"{x:.4f}", f"{y:.4f}", f"{y - x:+.4f}"] for key, (x, y) in scores.items()]
    console.print(f"A  {a}\nB  {b}", markup=False)
    if rows:
        print_table(["", "A", "B", "B − A"], rows)
    for key, (ours, theirs) in long.items():
        console.print(f"{key}\n  A  {ours}\n  B  {theirs}", markup=False)
    if not settings:
        print("no setting differs")
    if {"fold", "split.json"} & settings.keys():
        print("warning: other folds, so that the scores are of other cases as well", file=sys.stderr)
    print(
        f"scores: means over {folds} folds" if folds > 1 else "" if folds else "no scores: not both finished"
    )
    if json_file:
        write_json({"settings": settings, "scores": scores, "folds": folds}, json_file)


_WIDEST = 24  # characters of a value in the table; a longer one stands below it, unbroken


@app.command(rich_help_panel=TRAIN)
def sweep(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A file of sweeps/, without .yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for hnseg train, for every job.")
    ] = None,
) -> None:
    """Print a sweep as a W&B sweep file, for `wandb sweep` and `wandb agent`."""
    import yaml

    from hnseg.training.sweeps import wandb_sweep

    given = overrides or []
    print(yaml.safe_dump(wandb_sweep(name, given), sort_keys=False, width=100), end="")
    if "logger.mode=online" not in given:
        print("W&B sees nothing of these runs; add logger.mode=online where they may leave", file=sys.stderr)


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
