"""The command that compares arms out of fold: ablation."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from hnseg.cli.app import app

PAPER = "full,no_cte,srn_cte,resenc_cte,resenc"


@app.command()
def ablation(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="What train.py sweeps=ablation left.")],
    data: Annotated[Path, typer.Option(metavar="ROOT", help="The cohort: a HECKTOR folder or a CSV.")],
    out: Annotated[Path, typer.Option(metavar="OUT", help="Folder to write; again, it goes on there.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for infer.py, for every arm.")
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
    if report and find_spec("ipyniivue"):
        from hnseg.evaluation.report.page import write_report

        write_report(out)
    elif report:
        print(f"no report: pip install -e '.[report]', then hnseg report {out}")
    if logger == "wandb":
        from hnseg.training.wandb_runs import log_ablation

        log_ablation(out, rows, mode=mode, project=sources[0].project)
    print(f"{out}: {', '.join(chosen)} on {len(cases)} cases; ablation.csv, .md, .tex, .json")
