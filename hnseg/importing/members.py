"""Foreign networks as members of a bundle: what both importers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hnseg.card import Axes, InputSpec, Positive, Shape, Stage, Window
from hnseg.config import Job, Node, compose_job
from hnseg.errors import HnsegError
from hnseg.files import digest_file, restore
from hnseg.models.bundle import LISTING, Bundle, Trained, write_bundle
from hnseg.models.nets import build

Spacing = tuple[Positive, Positive, Positive]
M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], content: Any, source: Path | str) -> M:
    """The content of the foreign file `source`, refused with its first value that hnseg cannot run."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        value = "" if first["type"] == "missing" else f"={first['input']!r:.200}"
        raise HnsegError(f"{source}: {key}{value}: {first['msg']}; copy it again, or train so") from error


def compose(model: str, network: str, overrides: Sequence[str]) -> tuple[Job, Stage, InputSpec]:
    """The configuration of a command's overrides, its stage and input.

    Args:
        model: The file of conf/model/ for the folder's network, whose class is `network`.
        overrides: As for hnseg train.

    Raises:
        HnsegError: Overrides that ask for another network.
    """
    job = compose_job([f"model={model}", *overrides])
    if job.model.settings.target != f"hnseg.models.nets.{network}":
        raise HnsegError(f"model={job.model.name}: the folder holds model={model}; leave it out")
    # What is smaller than the window is padded there, after the normalisation too.
    return job, job.placed_stage, replace(job.input_spec, pad_to=None)


def check_classes(names: Sequence[str], stage: Stage, source: Path) -> None:
    """Refuses another number or order of classes than the stage's; names that the stage lacks pass."""
    places = {name.lower(): n for n, name in enumerate(stage.classes)}
    swapped = any(places.get(name.lower(), n) != n for n, name in enumerate(names))
    if swapped or len(names) != len(stage.classes):
        raise HnsegError(
            f"{source}: classes {', '.join(names)}, where stage={stage.name} has {', '.join(stage.classes)}; "
            "choose the stage that the network was trained for, or train in this order"
        )


def check_channels(names: Sequence[str], channels: Sequence[str], source: Path) -> None:
    """Refuses another number of channels than stage and recipe make, and PET in CT's place or the reverse.

    Args:
        names: Of the network's channels, in the words of whoever trained it; names of neither modality pass.
        channels: `InputSpec.channel_names`.
        source: Where the names were read.
    """
    given, made = ", ".join(names), ", ".join(channels)
    if len(names) != len(channels):
        raise HnsegError(
            f"{source}: {len(names)} channels ({given}), but stage and recipe make {len(channels)} ({made}); "
            "choose another stage=, or cte=true|false"
        )
    if any({_modality(a), _modality(b)} == {"CT", "PET"} for a, b in zip(names, channels, strict=True)):
        raise HnsegError(f"{source}: channels {given} where hnseg makes {made}; train in this order")


def _modality(name: str) -> str | None:
    if name.lower().startswith("ct"):
        return "CT"
    return "PET" if name.lower() == "pt" or name.lower().startswith(("pet", "suv")) else None


def check_spacing(spacing: Sequence[float], wanted: Sequence[float], near: float, source: Path) -> None:
    """Refuses a spacing further from the stage's than a share `near`, both along the network's axes (mm)."""
    if any(abs(a - b) > near * a for a, b in zip(spacing, wanted, strict=True)):
        raise HnsegError(
            f"{source}: spacing {list(spacing)} mm, where the stage has {list(wanted)} along these axes; set "
            "stage.spacing=[x,y,z]"
        )


def make_member(
    job: Job,
    fold: int | str,
    spec: InputSpec,
    weights: dict[str, Any],
    path: Path,
    *,
    settings: dict[str, Any],
    patch: Shape,
    axes: Axes,
    window: Window,
    imported: dict[str, Any],
    **provenance: Any,
) -> Trained:
    """Card and network of the checkpoint at `path`.

    Args:
        job: Of `compose`.
        fold: That the network was not trained on, or `all`.
        spec: Of `compose`, with the network's normalisation.
        weights: The checkpoint's state dictionary.
        patch: The network's window, along its own axes.
        window: How a volume larger than the patch is shown.
        provenance: `mirror_axes` and `trained_on` of the card.

    Raises:
        HnsegError: The settings describe no network, or the weights are another's.
    """
    node = Node.model_validate({"_target_": job.model.settings.target, **settings})
    training = job.training.model_copy(update={"patch": axes.shape_from_network(patch)})
    model = job.model.model_copy(update={"settings": node, "window": window})
    job = job.model_copy(update={"fold": fold, "training": training, "model": model})
    card = job.card(
        spec,
        axes=axes,
        imported={"sha256": digest_file(path), **imported},
        **provenance,
    )
    try:
        network = build(**card.network)
        network.get_submodule("network").load_state_dict(weights)
    except Exception as error:  # networks assert, divide and index without a word about settings
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise HnsegError(f"{path}: not the network of its settings ({reason}); copy the folder") from error
    return card, network


def add_members(out: Path, trained: Iterable[Trained]) -> list[str]:
    """Makes the bundle `out`, or extends it, whole or not at all; the names of the new members."""
    restore(out)
    kept = Bundle.load(out).members if (out / LISTING).exists() else ()
    return write_bundle(chain((member.loaded() for member in kept), trained), out)[len(kept) :]
