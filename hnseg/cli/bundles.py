"""Commands that make bundles: export, import-nnunet, import-monai; conf copies the configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from hnseg.cli.app import SHARE, app, exists, say, suggest
from hnseg.errors import HnsegError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="As for hnseg train: stage= and recipe= that made its images."),
]
Bundle = Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle to make, or to extend.")]


@app.command(rich_help_panel=SHARE)
def export(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of runs, and bundles to take along.", callback=exists),
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
    """Bundle trained networks into a folder that infer loads."""
    say(f"exporting {', '.join(map(str, runs))} to {out}")
    from hnseg.models.bundle import export_bundle

    if convert:
        from hnseg.inference.backends import convert_bundle, require_openvino

        require_openvino("--convert", "export without it")
    members = export_bundle(runs, out, checkpoint=checkpoint)
    if convert:
        convert_bundle(out)
    _show_members(out, members)


@app.command("import-nnunet", rich_help_panel=SHARE)
def import_nnunet(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION, with fold_K in it.",
            callback=exists,
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
    say(f"importing {folder} into {out}")
    from hnseg.importing.nnunet import import_nnunet

    chosen = folds.split(",") if folds else None
    members = import_nnunet(folder, overrides or [], out, folds=chosen, checkpoint=checkpoint)
    _show_members(out, members)


@app.command("import-monai", rich_help_panel=SHARE)
def import_monai(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="An Auto3DSeg work directory, or one of its segresnet_K.", callback=exists
        ),
    ],
    out: Bundle,
    overrides: Overrides = None,
) -> None:
    """Make bundle members of Auto3DSeg's SegResNets."""
    say(f"importing {folder} into {out}")
    from hnseg.importing.auto3dseg import import_auto3dseg

    members = import_auto3dseg(folder, overrides or [], out)
    _show_members(out, members)


@app.command(rich_help_panel=SHARE)
def conf(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Gains conf/ and sweeps/.")],
) -> None:
    """Copy the configuration files out for editing; HNSEG_CONF=DIR in the environment uses them."""
    from shutil import copytree, ignore_patterns

    from hnseg.app import HOME

    for name in ("conf", "sweeps"):
        if (out / name).exists():
            raise HnsegError(f"{out / name}: is there already; name another folder")
        copytree(HOME / name, out / name, ignore=ignore_patterns("__init__.py", "__pycache__"))
    (out / "conf" / "local.yaml").unlink(missing_ok=True)  # the user's own of this installation
    print(f"{out}: conf/, sweeps/")
    suggest(f"HNSEG_CONF={out} hnseg train --cfg job")


def _show_members(bundle: Path, members: Iterable[str]) -> None:
    print(f"{bundle}: {', '.join(members)}")
    suggest(f"hnseg infer cases=PATH bundle={bundle} out=predictions")
