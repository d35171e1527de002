"""The command reproduce-paper: the paper's cascade on a cohort, from head masks to its out-of-fold score."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hnseg.cli.app import TRAIN, app, exists, say, suggest
from hnseg.errors import HnsegError
from hnseg.files import print_table

# nnU-Net's documentation gives its default network 9 hours on an A100: 1.44e18 operations (patches of 128³ in
# pairs, 250,000 steps).
A100_TFLOPS = 45.0


@app.command("reproduce-paper", rich_help_panel=TRAIN)
def reproduce_paper(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="The cohort in the HECKTOR layout.", callback=exists)
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for hnseg train, for every training.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Gains bundles, head masks, predictions and scores.")
    ] = Path("paper"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the commands and their hours alone.")
    ] = False,
    tflops: Annotated[
        float, typer.Option(min=0.1, help="Of the GPU, in training; the default is about an A100's.")
    ] = A100_TFLOPS,
) -> None:
    """Train the paper's cascade in folds, and score it out of fold.

    The same command goes on where it stopped.
    The localiser is trained once, on the cases that have a head mask: it only places a box. Coarse and fine
    networks are trained in five folds, so that each case is segmented by networks that have not seen it.
    """
    say(f"the paper's cascade on {root} → {out}")
    commands = steps(root, overrides or [], out)
    hours = [_hours(command, root, tflops) for command in commands]
    rows = [
        [str(number), f"hnseg {shlex.join(command)}", f"{cost:.1f}" if cost else ""]
        for number, (command, cost) in enumerate(zip(commands, hours, strict=True), 1)
    ]
    print_table(["", "command", "GPU hours"], rows)
    print(f"{sum(hours):.0f} GPU hours, estimated from operations at {tflops:g} TFLOP/s, not measured")
    if dry_run:
        suggest(shlex.join(["hnseg", "reproduce-paper", str(root), *(overrides or []), "--out", str(out)]))
        return
    for number, command in enumerate(commands, 1):
        say(f"[{number}/{len(commands)}] hnseg {shlex.join(command)}")
        status = subprocess.run([sys.executable, "-m", "hnseg", *command], check=False).returncode
        if status:
            raise HnsegError(
                f"step {number} ended with status {status} (its message is above); the same command goes on"
            )


def steps(root: Path, overrides: Sequence[str], out: Path) -> list[list[str]]:
    """The commands, without `hnseg`, in order; each skips what it has finished before."""
    from hnseg.config import compose_job

    runs = compose_job([*overrides, f"data.root={root}"])
    labels, trained = runs.data.head_labels, runs.run_dir.parents[1]
    localiser, heads, bundle, predictions = (
        str(out / name) for name in ("localiser", "head_masks", "bundle", "predictions")
    )
    data = [f"data.root={root}", f"data.head_masks={heads}", *overrides]
    propose = [] if labels.is_dir() else [["propose-heads", str(root), "--out", str(labels)]]
    return [
        *propose,
        ["train", "stage=localiser", "model=plainconv", "fold=all", f"data.root={root}", *overrides],
        ["export", str(trained / "localiser_plainconv"), "--out", localiser],
        ["infer", f"cases={root}", f"bundle={localiser}", "last_stage=localiser", f"out={heads}"],
        ["train", "stage=coarse", "model=plainconv", "fold=0-4", *data, "-m"],
        ["train", "stage=fine", "model=resenc", "fold=0-4", *data, "-m"],
        ["train", "stage=fine", "model=segresnet", "fold=0-4", *data, "-m"],
        # The best checkpoint of a fold was chosen on the cases that it is scored on.
        ["export", str(trained), "--out", bundle, "--checkpoint", "last"],
        ["infer", f"cases={root}", f"bundle={bundle}", "out_of_fold=true", f"out={predictions}"],
        ["evaluate", str(root), predictions, "--json", str(out / "scores.json")],
    ]


def _hours(command: Sequence[str], root: Path, tflops: float) -> float:
    """GPU hours of all trainings of a command; 0 of one that trains nothing."""
    if command[0] != "train":
        return 0.0
    from hnseg.app import expand_arguments
    from hnseg.config import compose_job
    from hnseg.imaging.case import read_cases
    from hnseg.training.profile import training_flops

    given = expand_arguments([argument for argument in command[1:] if argument != "-m"])
    folds = next(argument for argument in given if argument.startswith("fold=")).removeprefix("fold=")
    jobs = [
        compose_job([*(text for text in given if not text.startswith("fold=")), f"fold={fold}"])
        for fold in folds.split(",")
    ]
    cases = len(read_cases(root))
    trained = cases if folds == "all" else cases * (len(jobs) - 1) // len(jobs)
    return len(jobs) * training_flops(jobs[0], trained) / (tflops * 1e12) / 3600
