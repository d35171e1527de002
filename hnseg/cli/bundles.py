"""Commands that make, tune and serve bundles."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from hnseg.cli.app import Root, app

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="As for train.py: stage= and recipe= that made its images."),
]
Bundle = Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle to make, or to extend.")]


@app.command()
def export(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders that train.py wrote, and bundles to take along."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The bundle to make, in place of one that is there.")
    ],
    checkpoint: Annotated[
        Literal["best", "last", "ema"],
        typer.Option(help="Best by validation Dice; the last of the training, or their moving average."),
    ] = "best",
    convert: Annotated[
        bool,
        typer.Option("--convert", help="Convert the networks for OpenVINO now, not at their first case."),
    ] = False,
) -> None:
    """Bundle trained members into a folder that infer.py loads."""
    from hnseg.models.bundle import export_bundle

    if convert:
        from hnseg.inference.backends import convert_bundle, require_openvino

        require_openvino("--convert", "export without it")
    members = export_bundle(runs, out, checkpoint=checkpoint)
    if convert:
        convert_bundle(out)
    print(f"{out}: {', '.join(members)}")


@app.command(name="import-nnunet")
def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION, with fold_K in it."
        ),
    ],
    out: Bundle,
    overrides: Overrides = None,
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
    out: Bundle,
    overrides: Overrides = None,
) -> None:
    """Make bundle members of Auto3DSeg's SegResNets."""
    from hnseg.importing.auto3dseg import import_auto3dseg

    members = import_auto3dseg(folder, overrides or [], out)
    print(f"{out}: {', '.join(members)}")


@app.command(name="tune-postprocess")
def tune_postprocess(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to write the rules into.")],
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="What infer.py made of ROOT with out_of_fold=true decision.min_component_ml=0 "
            "decision.node_suv_peak=0.",
        ),
    ],
    root: Root,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be chosen.")] = False,
) -> None:
    """Choose volume floors and the nodes' least SUVpeak on out-of-fold predictions.

    A bundle made or extended from this one has its members' own rules again: tune it anew.
    """
    from hnseg.evaluation.tuning import model_card_note, print_tuning, tune
    from hnseg.models.bundle import Bundle, write_rules

    members = Bundle.load(bundle)
    tuning = tune(members, predictions, root)
    print_tuning(tuning)
    if not dry_run:
        write_rules(members, replace(members.decision, **tuning.rules), model_card_note(tuning))
        print(f"{bundle}: rules written")


@app.command()
def challenge(
    model: Annotated[Path, typer.Option(metavar="BUNDLE", help="The trained members; only read.")],
    source: Annotated[Path, typer.Option("--input", metavar="DIR", help="Holds images/ct and images/pet.")],
    out: Annotated[Path, typer.Option("--output", metavar="DIR", help="The mask goes below it.")],
    interface: Annotated[Literal["2025", "2026"], typer.Option(help="The edition of HECKTOR.")] = "2025",
) -> None:
    """Segment the one study of a grand-challenge container."""
    from hnseg.inference.grand_challenge import INTERFACES, segment_study
    from hnseg.processes import silence_libraries

    silence_libraries()
    target, result = segment_study(source, out, model, INTERFACES[interface])
    for fallback in result.fallbacks:
        print(fallback)
    print(f"{target}: {sum(result.seconds.values()):.0f} s")
