"""`hnseg`: the commands around training and inference, which are train.py and infer.py.

Each command imports what it needs when it runs, so that `hnseg --help` answers at once.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hnseg import __version__
from hnseg.errors import HnsegError

if TYPE_CHECKING:
    from hnseg.cases import Case

app = typer.Typer(
    help="Coarse-to-fine segmentation of head-and-neck tumours and lymph nodes in PET/CT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

heads = typer.Typer(help="Head labels for the head stage.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(heads, name="heads")

Root = Annotated[Path, typer.Argument(metavar="ROOT", help="A folder in the HECKTOR layout, or a CSV.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: chosen from the cores.")]


def main() -> None:
    """Run the command line; a mistake in the input ends it with one line and status 2."""
    try:
        app()
    except HnsegError as error:
        line = " ".join(str(error).splitlines())
        print(f"hnseg: error: {line}", file=sys.stderr)
        sys.exit(2)


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


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    cases: Annotated[int, typer.Option(help="How many.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[
        Literal["small", "full"], typer.Option(help="full: grids as large as real scans'.")
    ] = "small",
    workers: Workers = None,
) -> None:
    """Make a synthetic PET/CT cohort in the HECKTOR layout."""
    from hnseg.data.phantom import make_cohort

    make_cohort(out, cases, seed, size=size, workers=workers)
    print(f"{cases} cases in {out}")


@app.command()
def audit(root: Root, json_file: Json = None, workers: Workers = None) -> None:
    """List a cohort's faults; exit status 1 if a case is unusable."""
    from hnseg.audit import audit as audit_cases
    from hnseg.audit import find_orphans
    from hnseg.audit_table import print_audit
    from hnseg.cases import read_cases

    audits = audit_cases(read_cases(root, strict=False), workers)
    orphans = find_orphans(root) if root.is_dir() else []
    print_audit(audits, orphans)
    if json_file:
        _write_json({"cases": [one.as_json() for one in audits], "orphans": orphans}, json_file)
    if not all(one.usable for one in audits):
        raise typer.Exit(1)


@heads.command()
def propose(
    root: Root,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: ROOT/heads.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many cases, at random.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same cases.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo masks that are there.")] = False,
    workers: Workers = None,
) -> None:
    """Write head masks from the CT's anatomy, to check and correct; exit status 1 if a CT cannot be read."""
    from hnseg.cases import HEADS, read_cases
    from hnseg.data.heads import draw_cases, propose_heads, summary

    if out is None and not root.is_dir():
        raise HnsegError(f"{root}: a list of cases has no folder for the masks; name one with --out DIR")
    out = out or root / HEADS
    outcomes = propose_heads(
        draw_cases(read_cases(root, strict=False), count, seed), out, overwrite=overwrite, workers=workers
    )
    print(summary(outcomes, out))
    if any(one.head is None for one in outcomes):
        raise typer.Exit(1)


@app.command()
def evaluate(
    truth: Annotated[Path, typer.Argument(metavar="GT_DIR", help="CASE.nii.gz, or a HECKTOR folder.")],
    predictions: Annotated[Path, typer.Argument(metavar="PRED_DIR", help="CASE.nii.gz on the same grids.")],
    json_file: Json = None,
    overlays: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw a picture of each case into this folder.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="ROOT", help="The CT and PET to draw on; default: GT_DIR.")
    ] = None,
    empty: Annotated[
        Literal["one", "zero", "skip"], typer.Option(help="GTVp DSC where both masks lack it.")
    ] = "one",
    matching: Annotated[
        Literal["greedy", "hungarian", "group"], typer.Option(help="How nodes are paired.")
    ] = "greedy",
    connectivity: Annotated[Literal["6", "18", "26"], typer.Option(help="What makes one node.")] = "26",
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="IoU above which a node counts as found.")
    ] = 0.3,
) -> None:
    """Score predicted masks with the official metrics."""
    from hnseg.evaluation.score import evaluate as score
    from hnseg.evaluation.score import print_report, write_json

    cases = _cases_to_draw(truth, images or truth) if overlays else []  # before the long work
    choices: Any = {"empty": empty, "matching": matching, "connectivity": int(connectivity)}
    report = score(truth, predictions, threshold=threshold, **choices)
    print_report(report)
    if json_file:
        write_json(report, json_file)
    if overlays:
        _draw(cases, predictions, overlays)


def _cases_to_draw(truth: Path, images: Path) -> "list[Case]":
    """The cases of `images` that have a true mask, with that mask for label."""
    from hnseg.cases import read_cases
    from hnseg.evaluation.score import find_masks

    masks = find_masks(truth)
    cases = {case.case_id: case for case in read_cases(images, strict=False)}
    if missing := sorted(masks.keys() - cases.keys()):
        raise HnsegError(f"{images}: no CT and PET of {', '.join(missing)}; name their folder with --images")
    return [replace(cases[name], label=mask) for name, mask in masks.items()]


def _draw(cases: "list[Case]", predictions: Path, out: Path) -> None:
    """Write OUT/CASE.png for every case."""
    from rich.console import Console
    from rich.progress import track

    from hnseg.evaluation.overlay import overlay
    from hnseg.evaluation.score import find_masks

    predicted = find_masks(predictions)
    for case in track(cases, "drawing", console=Console(stderr=True)):
        overlay(case, predicted[case.case_id], out / f"{case.case_id}.png")


@app.command()
def threshold(root: Root, json_file: Json = None) -> None:
    """Score the best SUV threshold that the truth can pick."""
    from hnseg.cases import read_cases
    from hnseg.evaluation.threshold import oracle_threshold

    result = oracle_threshold(read_cases(root))
    print(result)
    if json_file:
        _write_json(asdict(result), json_file)


@app.command()
def plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OVERRIDES]...", help="As for train.py; stage= and model= choose the tables."
        ),
    ] = None,
) -> None:
    """Set the configuration beside the paper's tables; exit status 1 at an unexplained difference."""
    from hnseg.plan.report import print_plan

    if print_plan(overrides or []):
        raise typer.Exit(1)


@app.command()
def export(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that train.py wrote.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The bundle to make.")],
    checkpoint: Annotated[
        Literal["best", "last"], typer.Option(help="Best by validation Dice, or the last of the training.")
    ] = "best",
) -> None:
    """Bundle trained members into a folder that infer.py loads."""
    from hnseg.models.bundle import export_bundle

    members = export_bundle(runs, out, checkpoint=checkpoint)
    print(f"{out}: {', '.join(members)}")


@app.command(name="import-nnunet")
def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION, with fold_K in it."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle to make, or to extend.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OVERRIDES]...", help="As for train.py: stage= and recipe= that made its images."
        ),
    ] = None,
    folds: Annotated[
        str | None, typer.Option(metavar="K,K,...", help="Numbers, or all; default: those that are there.")
    ] = None,
    checkpoint: Annotated[Literal["final", "best"], typer.Option(help="Which of a fold's.")] = "final",
) -> None:
    """Make bundle members of an nnU-Net v2 training."""
    from hnseg.importing.nnunet import import_nnunet

    chosen = folds.split(",") if folds else None
    members = import_nnunet(folder, overrides or [], out, folds=chosen, checkpoint=checkpoint)
    print(f"{out}: {', '.join(members)}")


@app.command(name="import-monai")
def import_monai(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An Auto3DSeg work directory, or one of its segresnet_K.")
    ],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle to make, or to extend.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OVERRIDES]...", help="As for train.py: stage= and recipe= that made its images."
        ),
    ] = None,
) -> None:
    """Make bundle members of Auto3DSeg's SegResNets."""
    from hnseg.importing.auto3dseg import import_auto3dseg

    members = import_auto3dseg(folder, overrides or [], out)
    print(f"{out}: {', '.join(members)}")


def _write_json(content: dict[str, Any], path: Path) -> None:
    from hnseg.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
