"""The command that changes a bundle's rules: tune-postprocess."""

from pathlib import Path
from typing import Annotated

import typer

from hnseg.cli.app import Root, app


@app.command(name="tune-postprocess")
def tune_postprocess(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to write the rules into.")],
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="What infer.py made of ROOT with unseen=true decision.min_component_ml=0 "
            "decision.node_suv_peak=0.",
        ),
    ],
    root: Root,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be chosen.")] = False,
) -> None:
    """Choose volume floors and the nodes' least SUVpeak on out-of-fold predictions.

    A bundle made or extended from this one has its members' own rules again: tune it anew.
    """
    from hnseg.models.bundle import Bundle
    from hnseg.models.bundle_rules import write_rules
    from hnseg.tuning.postprocess import tune
    from hnseg.tuning.report import model_card_note, print_tuning

    members = Bundle.load(bundle)
    tuning = tune(members, predictions, root)
    print_tuning(tuning)
    if not dry_run:
        write_rules(members, members.decision | tuning.chosen.rules, model_card_note(tuning))
        print(f"{bundle}: rules written")
