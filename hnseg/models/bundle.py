"""Trained members → one folder that hnseg infer loads, with its model card and decision rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from hnseg.card import Card, Decision, FolderName, plain
from hnseg.errors import HnsegError
from hnseg.files import digest, digest_file, replacing, replacing_folder, restore
from hnseg.models.checkpoint import FORMAT, Checkpoint, Member, Trained, read_card, read_checkpoint

LISTING, MODEL_CARD, WEIGHTS, CARD_FILE = "bundle.yaml", "README.md", "weights.safetensors", "member.yaml"


class _Digests(BaseModel):
    """SHA-256 of a member's files."""

    model_config = ConfigDict(strict=True, extra="forbid")
    card: str = Field(alias="member.yaml")
    weights: str = Field(alias="weights.safetensors")


class _Listing(BaseModel):
    """What bundle.yaml holds: its format, the digests of each member's files, the last stage's rules."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: int
    members: dict[FolderName, _Digests]
    decision: Decision

    @classmethod
    def read(cls, path: Path) -> _Listing:
        """The listing of a bundle's folder."""
        file = path / LISTING
        try:
            content = yaml.safe_load(file.read_text())
            if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
                raise HnsegError(
                    f"{path}: bundle format {content['format']}, this hnseg reads {FORMAT}; make it again "
                    "with hnseg export"
                )
            return cls.model_validate(content)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"]))
            raise HnsegError(f"{file}: damaged ({key}: {fault['msg']}); export the bundle again") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise HnsegError(
                f"{path}: not a bundle ({reason}); make one with hnseg export RUNS --out {path}"
            ) from error

    def write(self, path: Path) -> None:
        """Writes the listing into a bundle's folder."""
        with replacing(path / LISTING) as temporary:
            temporary.write_text(yaml.safe_dump(plain(self), sort_keys=False))


@dataclass(frozen=True)
class Bundle:
    """The members of an ensemble, all stages.

    Args:
        path: The folder.
        members: In the order of the listing.
        decision: Rules of the last stage's recipe.
        identity: Digest of all members, whatever the rules.
    """

    path: Path
    members: tuple[Member, ...]
    decision: Decision
    identity: str

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Reads a bundle and checks its files against their digests.

        Raises:
            HnsegError: Not a bundle, another format, or a missing or altered file.
        """
        restore(path)
        listing = _Listing.read(path)
        files = {
            path / name / file: sha
            for name, digests in listing.members.items()
            for file, sha in digests.model_dump(by_alias=True).items()
        }
        with ThreadPoolExecutor() as pool:  # gigabytes, and hashing leaves the interpreter alone
            list(pool.map(_verify, files, files.values()))
        members = []
        for name, sha in listing.members.items():
            card = read_card(yaml.safe_load((path / name / CARD_FILE).read_text()), path / name / CARD_FILE)
            members.append(Member(card, path / name / WEIGHTS, sha.weights))
        return cls(path, tuple(members), listing.decision, digest(listing.model_dump()["members"], 16))

    def of_stage(self, name: str) -> list[Member]:
        """The members of one stage."""
        return [member for member in self.members if member.stage.name == name]

    def out_of_fold(self, case_id: str, ct_digest: str = "") -> Bundle:
        """The bundle without the members that were trained on a case, by its id or its CT."""
        return replace(self, members=tuple(m for m in self.members if not m.has_seen(case_id, ct_digest)))

    def require_out_of_fold(self, case_ids: Sequence[str], stages: Sequence[str]) -> None:
        """Refuses cases that no member of a stage can segment out of fold, not one of them.

        Raises:
            HnsegError: It names what to train.
        """
        for stage in stages:
            members = self.of_stage(stage)
            if all(member.has_seen(case_id) for member in members for case_id in case_ids):
                train = " ".join(
                    f"hnseg train stage={stage} model={members[0].card.model} fold=0-4 -m".split()
                )
                raise HnsegError(
                    f"out_of_fold=true: each {stage} member of {self.path} was trained on each of the "
                    f"{len(case_ids)} cases; train in folds ({train}), and export those"
                )

    def whole(self) -> Bundle:
        """The bundle with members that predict whole ROIs."""
        return replace(self, members=tuple(member.whole() for member in self.members))

    def arm(self, name: str, kinds: Sequence[Mapping[str, Any]] | None, stage: str = "fine") -> Bundle:
        """The bundle with those members of a stage that belong to an arm; other stages stay whole.

        Args:
            name: Of the arm.
            kinds: `model` and `cte` of the members that belong to it; None is all.
            stage: The stage whose members are chosen.

        Raises:
            HnsegError: The bundle has no member of a kind.
        """
        if kinds is None:
            return self
        wanted = [(kind["model"], bool(kind["cte"])) for kind in kinds]
        present = [_kind(member) for member in self.of_stage(stage)]
        if missing := [kind for kind in wanted if kind not in present]:
            raise HnsegError(
                f"arms={name}: {self.path} has no {stage} member {_kind_name(missing[0])}, only "
                f"{', '.join(map(_kind_name, dict.fromkeys(present))) or 'none'}; export those too, or "
                "choose another arm"
            )
        chosen = [m for m in self.members if m.stage.name != stage or _kind(m) in wanted]
        return replace(self, members=tuple(chosen))


def _kind(member: Member) -> tuple[str, bool]:
    return member.card.model, member.card.input.cte


def _kind_name(kind: tuple[str, bool]) -> str:
    return f"{kind[0]} {'with' if kind[1] else 'without'} enhancement"


def _verify(path: Path, expected: str) -> None:
    try:
        found = digest_file(path)
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise HnsegError(f"{path}: {reason}; copy or export the bundle again") from error
    if found != expected:
        raise HnsegError(f"{path}: altered since the bundle was made; export it again")


def export_bundle(sources: Sequence[Path], out: Path, *, checkpoint: Checkpoint = "best") -> list[str]:
    """Gathers one checkpoint each of finished runs, and members of other bundles, into a bundle.

    Args:
        sources: Run folders, folders of them, or bundles.
        out: The bundle; an older bundle there is replaced.
        checkpoint: Which of a run's weights.

    Returns:
        The members' names.

    Raises:
        HnsegError: No run, an unfinished one or one without averaged weights, or `out` is something else.
    """
    bundles = [root for root in sources if (root / LISTING).exists()]
    below = {root: {config.parent for config in root.rglob("config.json")} for root in sources}
    if empty := [str(root) for root in sources if not below[root] and root not in bundles]:
        raise HnsegError(
            f"{', '.join(empty)}: no run below (it holds config.json); train first, or mend the name"
        )
    folders = sorted(set().union(*below.values()))
    if unfinished := [str(folder) for folder in folders if not (folder / "score.json").exists()]:
        raise HnsegError(f"not finished: {', '.join(unfinished)}; run the same training command again")
    stored = [member for bundle in bundles for member in Bundle.load(bundle).members]
    trained = (read_checkpoint(folder, checkpoint) for folder in folders)
    return write_bundle(chain((member.loaded() for member in stored), trained), out)


def write_bundle(trained: Iterable[Trained], out: Path) -> list[str]:
    """Writes members into a bundle, whole or not at all.

    Args:
        trained: Card and network of each member; only one is held at a time.
        out: The bundle; an older bundle there is replaced.

    Returns:
        The members' names.

    Raises:
        HnsegError: Two members of one name, weights that have diverged, rules that clash, or `out` is
            something else, cannot be written, or is being written by another process.
    """
    if out.is_file() or (out.exists() and any(out.iterdir()) and not (out / LISTING).exists()):
        raise HnsegError(f"{out}: holds something other than a bundle; choose another --out")
    cards: dict[str, Card] = {}
    members: dict[str, _Digests] = {}
    try:
        with replacing_folder(out) as new:
            for card, network in trained:
                if card.name in cards:
                    raise HnsegError(
                        f"a second member {card.name}; a bundle holds one of each name, and arm=NAME "
                        "gives a training or an import another"
                    )
                cards[card.name] = card
                members[card.name] = _write_member(card, network, new / card.name)
            decision = last_stage(list(cards.values())).decision
            _Listing(format=FORMAT, members=members, decision=decision).write(new)
            (new / MODEL_CARD).write_text(model_card(list(cards.values()), decision), encoding="utf-8")
    except OSError as error:
        raise HnsegError(f"{out}: cannot be written ({error}); choose another --out") from error
    return list(cards)


def _write_member(card: Card, network: nn.Module, folder: Path) -> _Digests:
    weights: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise HnsegError(
                f"{card.name}: its weights are no numbers any more (NaN or infinite, {name} first); "
                "choose another --checkpoint, or leave it out"
            )
        if tensor.data_ptr() not in stored:  # nnU-Net's decoder holds its encoder under a second name
            weights[name] = tensor.contiguous()
            stored.add(tensor.data_ptr())
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(save(weights))
    (folder / CARD_FILE).write_text(yaml.safe_dump(plain(card), sort_keys=False))
    return _Digests.model_validate({file: digest_file(folder / file) for file in (CARD_FILE, WEIGHTS)})


def last_stage(cards: Sequence[Card]) -> Card:
    """A card of the last stage, whose rules make the mask; all its members must agree on them."""
    order = ("localiser", "coarse", "fine")
    last = max((card.stage.name for card in cards), key=order.index)
    members = [card for card in cards if card.stage.name == last]
    if any(card.decision != members[0].decision for card in members):
        raise HnsegError(f"the {last} members disagree on recipe.decision; export runs of one recipe")
    return members[0]


def write_rules(bundle: Bundle, decision: Decision, note: str) -> None:
    """Writes rules into a bundle and its model card.

    They hold for these members: a bundle made or extended from it has its members' own rules again.

    Args:
        bundle: The bundle, with all its members.
        decision: All of its new rules.
        note: What a reader should know of them, in a sentence.

    Raises:
        HnsegError: The bundle cannot be written.
    """
    _Listing.read(bundle.path).model_copy(update={"decision": decision}).write(bundle.path)
    with replacing(bundle.path / MODEL_CARD) as temporary:
        cards = [member.card for member in bundle.members]
        temporary.write_text(model_card(cards, decision, note), encoding="utf-8")


_HEAD = """\
# Model card

Finds head-and-neck tumours (GTVp) and metastatic lymph nodes (GTVn) in PET/CT; made with hnseg.
Research software: it is not a medical device and has not been validated for patients.

**Input.** CT in HU and PET in SUV (body weight) of one patient, any grids, in one patient space.
**Output.** Labels on the CT's grid: {labels}.
**Rules.** {rules}

Validation Dice is measured inside the stage's ROI, on cases of the held-out fold: `val` in ROIs that the
truth has placed, which flatters the pipeline, `val_coarse` in ROIs placed by coarse predictions. Scores of
`fold_all` are of cases that were trained on.
"""
_COLUMNS = ("member", "stage", "input", "recipe", "trained on", "split", "val/dice", "val_coarse/dice")


def model_card(cards: Sequence[Card], decision: Decision, note: str = "") -> str:
    """The model card of a bundle, Markdown.

    Args:
        cards: Its members' descriptions.
        decision: The bundle's rules.
        note: What a reader should know of the rules, in a sentence.
    """
    classes = enumerate(last_stage(cards).stage.classes, start=1)
    labels = ", ".join(["0 background", *(f"{number} {name}" for number, name in classes)])
    rules = ", ".join(f"{key}: {value}" for key, value in plain(decision).items())
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, cards)]
    # A bar in a name would begin another cell.
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    rules += f". {note}" if note else ""
    return "\n".join([_HEAD.format(labels=labels, rules=rules), *lines, ""])


def _row(card: Card) -> tuple[str, ...]:
    return (
        card.name,
        card.stage.name,
        f"[{', '.join(card.input.channel_names)}]",
        card.recipe,
        "unknown cases" if card.trained_on is None else f"{len(card.trained_on)} cases",
        card.split or "unknown",
        *(f"{card.scores[key]:.4f}" if key in card.scores else "" for key in ("val/dice", "val_coarse/dice")),
    )
