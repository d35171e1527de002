"""Trained members → one folder that infer.py loads.

    bundle.yaml                       format, members, weights' hashes, decision rules
    MEMBER/member.yaml                stage, input chain, network: everything needed to run it
    MEMBER/weights.safetensors

Nothing in it is pickled, so that loading a bundle runs nobody's code.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from hnseg.errors import HnsegError
from hnseg.models.module import CARD
from hnseg.models.nets import build
from hnseg.stage import Stage

FORMAT = 1
WEIGHTS, CARD_FILE = "weights.safetensors", "member.yaml"


@dataclass(frozen=True)
class Member:
    """One trained network and what it needs to know about its input.

    Args:
        card: The member's description: name, stage, input, network, patch, decision.
        weights: Its safetensors file.
    """

    card: dict[str, Any]
    weights: Path

    @property
    def stage(self) -> Stage:
        """The stage it was trained for."""
        return Stage.from_dict(self.card["stage"])

    def network(self) -> nn.Module:
        """The network in evaluation mode, without its weights."""
        return build(**self.card["network"]).eval()

    def load_into(self, network: nn.Module) -> None:
        """Puts the member's weights into a network of its kind.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        try:
            load_model(network, self.weights)
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise HnsegError(
                f"{self.weights}: cannot be loaded ({reason}); export the bundle again"
            ) from error


@dataclass(frozen=True)
class Bundle:
    """The members of an ensemble, all stages.

    Args:
        path: The folder.
        members: In the order of their names.
        decision: Rules of the last stage's recipe: rule, min_component_ml, mirror.
    """

    path: Path
    members: tuple[Member, ...]
    decision: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Reads a bundle and checks its files against their hashes.

        Raises:
            HnsegError: Not a bundle, a newer format, or a missing or altered file.
        """
        try:
            listing = yaml.safe_load((path / "bundle.yaml").read_text())
            version, members, decision = listing["format"], listing["members"], listing["decision"]
        except OSError as error:
            raise HnsegError(
                f"{path}: not a bundle (no bundle.yaml); make one with hnseg export RUNS --out {path}"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise HnsegError(f"{path / 'bundle.yaml'}: damaged; export the bundle again") from error
        if version != FORMAT:
            raise HnsegError(f"{path}: bundle format {version}, this hnseg reads {FORMAT}; export it again")
        for name, hashes in members.items():
            for file, digest in hashes.items():
                _verify(path / name / file, digest)
        return cls(path, tuple(_read_member(path / name) for name in members), decision)

    def of_stage(self, name: str) -> list[Member]:
        """The members of one stage."""
        return [member for member in self.members if member.stage.name == name]


def export_bundle(
    runs: Sequence[Path], out: Path, *, checkpoint: Literal["best", "last"] = "best"
) -> list[str]:
    """Gathers one checkpoint each of finished runs into a bundle, written whole or not at all.

    Args:
        runs: Run folders, or folders of them.
        out: The bundle; an older bundle there is replaced.
        checkpoint: `best` by validation Dice, or `last`, which the validation cases had no say in.

    Returns:
        The members' names.

    Raises:
        HnsegError: No run, an unfinished one, or `out` is something else.
    """
    folders = sorted({config.parent for root in runs for config in Path(root).rglob("config.json")})
    if not folders:
        raise HnsegError(f"{', '.join(map(str, runs))}: no run below (a run holds config.json); train first")
    unfinished = [str(folder) for folder in folders if not (folder / "score.json").exists()]
    if unfinished:
        raise HnsegError(f"not finished: {', '.join(unfinished)}; run the same training command again")
    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / "bundle.yaml").exists()):
        raise HnsegError(f"{out}: holds something other than a bundle; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        names = _write_bundle([folder / f"{checkpoint}.ckpt" for folder in folders], new)
        if out.exists():
            out.replace(Path(temporary, "old"))
        new.replace(out)
    return names


def _write_bundle(checkpoints: Sequence[Path], out: Path) -> list[str]:
    cards = {}
    for checkpoint in checkpoints:
        card, network = _read_checkpoint(checkpoint)
        if card["name"] in cards:
            raise HnsegError(f"{checkpoint}: a second member {card['name']}; export runs of one experiment")
        cards[card["name"]] = card
        _write_member(card, network, out / card["name"])
    hashes = {name: {file.name: _digest(file) for file in sorted((out / name).iterdir())} for name in cards}
    listing = {"format": FORMAT, "members": hashes, "decision": _decision(list(cards.values()))}
    (out / "bundle.yaml").write_text(yaml.safe_dump(listing, sort_keys=False))
    return list(cards)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], nn.Module]:
    """A member's description, and its network with the checkpoint's weights."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        card: dict[str, Any] = stored[CARD]
        network = build(**card["network"])
        prefix = "network."
        weights = {k.removeprefix(prefix): v for k, v in stored["state_dict"].items() if k.startswith(prefix)}
        network.load_state_dict(weights)
    except (OSError, EOFError, RuntimeError, UnpicklingError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HnsegError(f"{path}: cannot be read ({reason}); train it again with overwrite=true") from error
    return card, network


def _write_member(card: dict[str, Any], network: nn.Module, folder: Path) -> None:
    folder.mkdir()
    # nnU-Net's decoder holds its encoder: save_model writes a tensor with two names once.
    save_model(network, str(folder / WEIGHTS))
    (folder / WEIGHTS).chmod(0o644)
    (folder / CARD_FILE).write_text(yaml.safe_dump(card, sort_keys=False))


def _read_member(folder: Path) -> Member:
    return Member(yaml.safe_load((folder / CARD_FILE).read_text()), folder / WEIGHTS)


def _decision(cards: list[dict[str, Any]]) -> dict[str, Any]:
    """The rules of the last stage; all its members must agree on them."""
    last = next(
        stage for stage in ("fine", "coarse", "head") if any(c["stage"]["name"] == stage for c in cards)
    )
    rules = [card["decision"] for card in cards if card["stage"]["name"] == last]
    if any(rule != rules[0] for rule in rules):
        raise HnsegError(f"the {last} members disagree on recipe.decision; export runs of one recipe")
    return rules[0]


def _verify(path: Path, digest: str) -> None:
    if not path.exists():
        raise HnsegError(f"{path}: missing from the bundle; copy or export it again")
    if _digest(path) != digest:
        raise HnsegError(f"{path}: altered since the bundle was made; export it again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
