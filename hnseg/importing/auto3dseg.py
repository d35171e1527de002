"""An Auto3DSeg SegResNet folder → bundle members.

    WORK_DIR/segresnet_K/configs/hyper_parameters.yaml
    WORK_DIR/segresnet_K/model/model.pt     state_dict, config, epoch, best_metric

The configuration that the checkpoint carries is what the network was trained with; the YAML is read where
it carries none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hnseg.data.split_files import read_split_file
from hnseg.errors import HnsegError
from hnseg.importing.compose import compose
from hnseg.importing.hyper_parameters import WINDOW, HyperParameters
from hnseg.importing.members import add_members, filled, reading
from hnseg.job import Config, describe, make_input, make_stage
from hnseg.models.bundle import digest
from hnseg.models.member import Trained
from hnseg.models.unpickle import read_checkpoint

CHECKPOINT, PARAMETERS = Path("model/model.pt"), Path("configs/hyper_parameters.yaml")


def import_auto3dseg(folder: Path, overrides: Sequence[str], out: Path) -> list[str]:
    """Makes bundle members of one algorithm folder, or of all `segresnet_*` of a work directory.

    Args:
        folder: The folder.
        overrides: As for train.py: the stage, and the recipe whose scaling made the network's images.
        out: The bundle.

    Returns:
        The members' names.

    Raises:
        HnsegError: No SegResNet there, or one that hnseg cannot run as Auto3DSeg does.
    """
    config = compose("segresnet", overrides)
    return add_members(out, _members(_find(folder), config))


def _find(folder: Path) -> list[Path]:
    """The algorithm folders."""
    found = [folder] if (folder / CHECKPOINT).exists() else []
    found = found or sorted(path.parents[1] for path in folder.glob(f"segresnet_*/{CHECKPOINT}"))
    if not found:
        raise HnsegError(
            f"{folder}: neither {CHECKPOINT} nor segresnet_*/{CHECKPOINT} in it; name an Auto3DSeg work "
            "directory or one of its segresnet folders"
        )
    return found


def _members(folders: Sequence[Path], config: Config) -> Iterator[Trained]:
    """Card and network of each folder, one at a time: a network is large."""
    for folder in folders:
        path = folder / CHECKPOINT
        stored = read_checkpoint(path)
        parameters = _parameters(folder, stored)
        with reading(f"{path}: it and {PARAMETERS} are", "Auto3DSeg"):
            card = _card(folder, stored, parameters, config)
            weights = stored["state_dict"]
        yield card, filled(card, weights, path, f"the configuration in {parameters.source}")


def _parameters(folder: Path, stored: dict[str, Any]) -> HyperParameters:
    path, told = folder / CHECKPOINT, stored.get("config")
    if not told:
        path = folder / PARAMETERS
        try:
            told = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise HnsegError(f"{path}: cannot be read ({reason}), and model.pt carries no config") from error
    if not isinstance(told, dict):
        raise HnsegError(f"{path}: its configuration is {told!r:.60}, no mapping; copy the folder again")
    return HyperParameters(path, told)


def _card(
    folder: Path, stored: dict[str, Any], parameters: HyperParameters, config: Config
) -> dict[str, Any]:
    stage = make_stage(config)
    parameters.check(stage)
    config = config | {"fold": int(parameters["fold"]), "training": {"patch": list(parameters.patch)}}
    spec = make_input(config, stage)
    # What is smaller than the window is padded there, after the normalisation too.
    spec = replace(spec, normalise=parameters.normalise(spec), pad_to=None)
    settings = parameters.network(spec.channels, len(stage.classes) + 1)
    axes = parameters.axes
    return describe(
        config | {"model": {**config["model"], "settings": settings, "window": WINDOW}},
        stage,
        spec,
        axes={"order": list(axes.order), "flip": list(axes.flip)},
        mirror_axes=parameters.mirror_axes,
        trained_on=_trained_on(folder, parameters),
        imported={
            "from": "Auto3DSeg",
            "checkpoint": CHECKPOINT.name,
            "sha256": digest(folder / CHECKPOINT),
            "epoch": int(stored.get("epoch", 0)),
            "best_metric": float(stored.get("best_metric", 0)),
        },
    )


def _trained_on(folder: Path, parameters: HyperParameters) -> list[str] | None:
    """The cases of the other folds; the datalist lies where the configuration says, or beside the folder.

    Returns:
        None where it is gone, so that the member passes as trained on any case.
    """
    listed = Path(str(parameters["data_list_file_path"] or ""))
    found = [path for path in (listed, folder / listed.name, folder.parent / listed.name) if path.is_file()]
    if not found:
        return None
    folds = read_split_file(found[0], ()).folds
    return sorted(case_id for k, cases in enumerate(folds) if k != parameters["fold"] for case_id in cases)
