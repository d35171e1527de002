"""Commands on masks: evaluate, threshold, tune-postprocess, ablation, report."""

from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import track

from hnseg.cli.app import EVALUATE, Json, Root, app, exists, say, suggest
from hnseg.files import write_json

PAPER = "full,no_cte,srn_cte,resenc_cte,resenc"


@app.command(rich_help_panel=EVALUATE)
def evaluate(
    truth: Annotated[
        Path,
        typer.Argument(metavar="GT_DIR", help="CASE.nii.gz, a HECKTOR folder or a CSV.", callback=exists),
    ],
    predictions: Annotated[
        Path, typer.Argument(metavar="PRED_DIR", help="CASE.nii.gz on the same grids.", callback=exists)
    ],
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
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out cases without prediction, and count them.")
    ] = False,
) -> None:
    """Score predicted masks with the official metrics."""
    say(f"scoring {predictions} against {truth}")
    from hnseg.evaluation.figures import overlay
    from hnseg.evaluation.score import Options, find_masks
    from hnseg.evaluation.score import evaluate as score
    from hnseg.evaluation.tables import print_scores
    from hnseg.imaging.case import read_cases

    if made_by := _maker(truth):
        say(f"warning: {truth} is what {made_by} wrote; the ground truth comes first: GT_DIR PRED_DIR")
    cases = [case for case in read_cases(truth) if case.label] if overlays else []  # before the long work
    choices: Any = {"empty": empty, "matching": matching, "connectivity": int(connectivity)}
    options = Options(threshold=threshold, **choices)
    cohort = score(truth, predictions, options, allow_missing=allow_missing)
    print_scores(cohort)
    if json_file:
        write_json(cohort.to_json(), json_file)
    if overlays:
        predicted = find_masks(predictions)
        for case in track(cases, "drawing", console=Console(stderr=True)):
            if case.case_id in cohort.missing:
                continue
            overlay(case, predicted[case.case_id], overlays / f"{case.case_id}.png")
    suggest(f"hnseg report {predictions} --ground-truth {truth}")


def _maker(truth: Path) -> str | None:
    """The command that wrote a folder of masks or a bundle, which is no ground truth."""
    if (truth / "bundle.yaml").exists():
        return "hnseg export"
    table = truth / "cases.csv"
    # A cohort may have a list of that name, without a status.
    written = table.exists() and "status" in table.read_text(errors="replace").partition("\n")[0].split(",")
    return "hnseg infer" if written else None


@app.command(rich_help_panel=EVALUATE)
def threshold(root: Root, json_file: Json = None) -> None:
    """Score the best SUV threshold that the ground truth can choose."""
    say(f"trying thresholds on {root}")
    from hnseg.evaluation.threshold import oracle_threshold
    from hnseg.imaging.case import read_cases

    result = oracle_threshold(read_cases(root))
    print(result)
    if json_file:
        write_json(asdict(result), json_file)


@app.command("tune-postprocess", rich_help_panel=EVALUATE)
def tune_postprocess(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle to write the rules into.", callback=exists)
    ],
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="What hnseg infer made of ROOT with out_of_fold=true decision.min_component_ml=0 "
            "decision.node_suv_peak=0.",
            callback=exists,
        ),
    ],
    root: Root,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be chosen.")] = False,
) -> None:
    """Choose volume floors and the nodes' least SUVpeak on out-of-fold predictions.

    A bundle made or extended from this one has its members' own rules again: tune it anew.
    """
    say(f"tuning {bundle} on {predictions}")
    from hnseg.evaluation.tuning import model_card_note, print_tuning, tune
    from hnseg.models.bundle import Bundle, write_rules

    members = Bundle.load(bundle)
    tuning = tune(members, predictions, root)
    print_tuning(tuning)
    if not dry_run:
        write_rules(members, replace(members.decision, **tuning.rules), model_card_note(tuning))
        print(f"{bundle}: rules written")
        suggest(f"hnseg infer cases=PATH bundle={bundle} out=predictions")


@app.command(rich_help_panel=EVALUATE)
def ablation(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS", help="What train sweeps=ablation left.", callback=exists)
    ],
    data: Annotated[
        Path,
        typer.Option(metavar="ROOT", help="The cohort: a HECKTOR folder or a CSV.", callback=exists),
    ],
    out: Annotated[Path, typer.Option(metavar="OUT", help="Folder to write; again, it goes on there.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for hnseg infer, for every arm.")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            metavar="ARM,ARM,...", help="Files of conf/arms; the others are compared with the first."
        ),
    ] = PAPER,
    oracle_roi: Annotated[
        bool, typer.Option("--oracle-roi", help="True lesions place the fine ROI; arms are named so.")
    ] = False,
    checkpoint: Annotated[
        Literal["best", "last", "ema"],
        typer.Option(help="Of each run; best was chosen by the Dice of the very cases that it is scored on."),
    ] = "best",
    report: Annotated[bool, typer.Option(help="Write OUT/report.html.")] = True,
    logger: Annotated[Literal["wandb", "none"], typer.Option(help="Log the table.")] = "wandb",
    mode: Annotated[Literal["offline", "online"], typer.Option(help="Of W&B.")] = "offline",
) -> None:
    """Score every arm on every case, by members that never saw it, and compare the arms."""
    say(f"comparing {arms} on {data}")
    from hnseg.evaluation.ablation import find_sources, predict, read_arms, write_ablation
    from hnseg.evaluation.tables import ABLATION, print_tables
    from hnseg.files import require_writable
    from hnseg.imaging.case import read_cases
    from hnseg.processes import silence_libraries

    silence_libraries()
    chosen = read_arms(arms.split(","), overrides or [], oracle=oracle_roi)
    cases = read_cases(data)
    sources = find_sources(runs, chosen, oracle=oracle_roi)
    require_writable(out / ABLATION)  # before the long work
    if logger == "wandb" and mode == "online":
        from hnseg.training.wandb_runs import require_login

        require_login("--mode online")
    predict(chosen, sources, cases, out, oracle=oracle_roi, checkpoint=checkpoint)
    rows = write_ablation(out, list(chosen), data)
    print_tables(rows)
    if report and find_spec("ipyniivue") and find_spec("itables"):
        from hnseg.evaluation.report.page import write_report

        write_report(out)
    elif report:
        print(f"no report: pip install -e '.[report]', then hnseg report {out}")
    if logger == "wandb":
        from hnseg.training.wandb_runs import log_ablation

        log_ablation(out, rows, mode=mode, project=sources[0].project)
    print(f"{out}: {', '.join(chosen)} on {len(cases)} cases; ablation.csv, .md, .tex, .json")


@app.command(rich_help_panel=EVALUATE)
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What hnseg infer wrote.", callback=exists)],
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            metavar="ROOT", help="The labelled cohort; default: the one the ablation names.", callback=exists
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="ROOT", help="Or patients without ground truth: no scores.", callback=exists),
    ] = None,
    overlays: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw each case there as a PNG too, with --data.")
    ] = None,
) -> None:
    """Write one HTML file with scores, plots and every case's pictures, to open without a network."""
    say(f"drawing the cases of {out}")
    from hnseg.evaluation.figures import overlay
    from hnseg.evaluation.report.page import write_report
    from hnseg.evaluation.score import find_masks
    from hnseg.imaging.case import read_cases

    drawn, html = write_report(out, ground_truth, data), out / "report.html"
    print(f"{html}: {len(drawn)} cases, {html.stat().st_size / 1e6:.1f} MB")
    if data and overlays:
        masks = find_masks(out)
        for case in read_cases(data, strict=False):
            if case.case_id in masks:
                overlay(replace(case, label=None), masks[case.case_id], overlays / f"{case.case_id}.png")
