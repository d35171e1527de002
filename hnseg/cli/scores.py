"""Commands on masks: evaluate, threshold, report."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import track

from hnseg.cli.app import Json, Root, app
from hnseg.files import write_json


@app.command()
def evaluate(
    truth: Annotated[Path, typer.Argument(metavar="GT_DIR", help="CASE.nii.gz, a HECKTOR folder or a CSV.")],
    predictions: Annotated[Path, typer.Argument(metavar="PRED_DIR", help="CASE.nii.gz on the same grids.")],
    json_file: Json = None,
    overlays: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw each case there, on the CT and PET of GT_DIR.")
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
    from hnseg.evaluation.figures import overlay
    from hnseg.evaluation.score import Options, find_masks
    from hnseg.evaluation.score import evaluate as score
    from hnseg.evaluation.tables import print_scores
    from hnseg.imaging.case import read_cases

    cases = [case for case in read_cases(truth) if case.label] if overlays else []  # before the long work
    choices: Any = {"empty": empty, "matching": matching, "connectivity": int(connectivity)}
    cohort = score(truth, predictions, Options(threshold=threshold, **choices))
    print_scores(cohort)
    if json_file:
        write_json(cohort.to_json(), json_file)
    if overlays:
        predicted = find_masks(predictions)
        for case in track(cases, "drawing", console=Console(stderr=True)):
            overlay(case, predicted[case.case_id], overlays / f"{case.case_id}.png")


@app.command()
def threshold(root: Root, json_file: Json = None) -> None:
    """Score the best SUV threshold that the ground truth can choose."""
    from hnseg.evaluation.threshold import oracle_threshold
    from hnseg.imaging.case import read_cases

    result = oracle_threshold(read_cases(root))
    print(result)
    if json_file:
        write_json(asdict(result), json_file)


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What infer.py wrote.")],
    truth: Annotated[
        Path | None, typer.Option(metavar="ROOT", help="The cohort; default: the one the ablation names.")
    ] = None,
) -> None:
    """Write one HTML file with scores, plots and every case's pictures, to open without a network."""
    from hnseg.evaluation.report.page import write_report

    drawn, html = write_report(out, truth), out / "report.html"
    print(f"{html}: {len(drawn)} cases, {html.stat().st_size / 1e6:.1f} MB")
