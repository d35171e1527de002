"""Arms by name: what infer.py would run each with, and the kinds of networks they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from hnseg.ablation.sources import Kind
from hnseg.errors import HnsegError
from hnseg.hydra_app import compose_job
from hnseg.inference.options import check_options

Config = dict[str, Any]

ORACLE = "_oracle_roi"  # ends the names of arms that no patient's scan can be segmented by
# What an ablation decides itself.
_OURS = ("cases", "bundle", "out", "format", "overwrite", "until", "unseen", "heads", "ensemble", "engine")


def read_arms(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    baseline: str | None = None,
    oracle: bool = False,
) -> dict[str, Config]:
    """What each arm is run with, as infer.py's configuration, by the name of its folder.

    Args:
        names: Of conf/ensemble.
        overrides: As for infer.py.
        baseline: The arm that the others are compared with, by default the first. It comes first, and it
            alone has probability maps unless the overrides say otherwise: the report draws its cases.
        oracle: The arms' names tell that their fine ROI is placed by the true lesions.

    Raises:
        HnsegError: No arm, an unknown one or one without members, or overrides that do not fit.
    """
    names = list(dict.fromkeys(filter(None, map(str.strip, names))))
    if not names:
        raise HnsegError("--arms: names no arm; name some of conf/ensemble")
    first = names[0] if baseline is None else baseline
    if first not in names:
        raise HnsegError(f"--baseline {first}: not among the arms; choose from {', '.join(names)}")
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in _OURS:
            raise HnsegError(f"{text}: hnseg ablation sets {key} itself; leave it out")
    names.sort(key=lambda name: name != first)
    return {name + ORACLE * oracle: _read_arm(name, overrides, mapped=name == first) for name in names}


def _read_arm(name: str, overrides: Sequence[str], *, mapped: bool) -> Config:
    given = [f"ensemble={name}", f"probabilities={str(mapped).lower()}", *overrides]
    config: Config = OmegaConf.to_container(compose_job(given, "infer"), resolve=True)  # type: ignore[assignment]
    check_options(config)
    if config["ensemble"]["members"] is None:
        raise HnsegError(f"--arms {name}: takes whatever members there are; name arms that say theirs")
    return config | {"unseen": True}


def kinds_of(arms: Mapping[str, Config], *, oracle: bool) -> list[Kind]:
    """The networks that the arms need, the last stage's at the end; an oracle places without the others."""
    placing = [] if oracle else [Kind("head"), Kind("coarse")]
    members = [member for config in arms.values() for member in config["ensemble"]["members"]]
    fine = [Kind("fine", member["model"], bool(member["cte"])) for member in members]
    return [*placing, *dict.fromkeys(fine)]
