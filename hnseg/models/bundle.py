"""Trained members → one folder that infer.py loads, with its model card and decision rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from hnseg.errors import HnsegError
from hnseg.files import digest, digest_file, replacing, replacing_folder, restore
from hnseg.models.checkpoint import Checkpoint, Member, Trained, read_checkpoint

_COLUMNS = ("member", "stage", "input", "recipe", "trained on", "split", "val/dice", "val_coarse/dice")
_POWERS = {"square": "²", "cube_root": "^(1/3)"}

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


def model_card(
    cards: Sequence[Mapping[str, Any]], last: Mapping[str, Any], decision: Mapping[str, Any], note: str = ""
) -> str:
    """The model card of a bundle, Markdown.

    Args:
        cards: Its members' descriptions.
        last: One of the last stage, which makes the mask.
        decision: The bundle's rules.
        note: What a reader should know of the rules, in a sentence.
    """
    classes = enumerate(last["stage"]["classes"], start=1)
    labels = ", ".join(["0 background", *(f"{number} {name}" for number, name in classes)])
    rules = ", ".join(f"{key}: {value}" for key, value in decision.items())
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(_row(card) for card in cards)]
    table = "\n".join(_line(row) for row in rows)
    if note:
        rules += f". {note}"
    return f"{_HEAD.format(labels=labels, rules=rules)}\n{table}\n"


def _line(cells: Sequence[str]) -> str:
    """A line of the table; a bar in a name would begin another cell."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _row(card: Mapping[str, Any]) -> tuple[str, ...]:
    scores, spec = card.get("scores", {}), card["input"]
    seen = card["trained_on"]
    return (
        card["name"],
        card["stage"]["name"],
        f"[{', '.join(_channels(spec))}]",
        card.get("recipe", ""),
        "unknown cases" if seen is None else f"{len(seen)} cases",
        str(card.get("split") or "unknown"),
        *(f"{scores[key]:.4f}" if key in scores else "" for key in ("val/dice", "val_coarse/dice")),
    )


def _channels(spec: Mapping[str, Any]) -> list[str]:
    """What each channel shows; cards without the powers' names have the paper's, and no coordinates."""
    powers = {"ct": spec.get("ct_powers", _POWERS), "pet": spec.get("pet_powers", ())}
    shown = [
        modality.upper() + suffix
        for modality in spec["modalities"]
        for suffix in ["", *(_POWERS[name] for name in powers[modality] if spec["cte"])]
    ]
    return [*shown, *(("x", "y", "z") if spec.get("coordinates") else ())]


FORMAT = 1
LISTING, MODEL_CARD, WEIGHTS, CARD_FILE = "bundle.yaml", "README.md", "weights.safetensors", "member.yaml"


@dataclass(frozen=True)
class Bundle:
    """The members of an ensemble, all stages.

    Args:
        path: The folder.
        members: In the order of their names.
        decision: Rules of the last stage's recipe, as `hnseg.inference.decision.Decision` reads them.
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
        restore(path)
        try:
            listing = yaml.safe_load((path / LISTING).read_text())
            version, members, decision = listing["format"], listing["members"], listing["decision"]
            files = [
                (path / name / file, sha) for name, hashes in members.items() for file, sha in hashes.items()
            ]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise HnsegError(
                f"{path}: not a bundle (no bundle.yaml); make one with hnseg export RUNS --out {path}"
            ) from error
        except OSError as error:
            raise HnsegError(f"{path / LISTING}: cannot be read ({error.strerror}); allow it") from error
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
            raise HnsegError(f"{path / LISTING}: damaged; export the bundle again") from error
        if version != FORMAT:
            raise HnsegError(f"{path}: bundle format {version}, this hnseg reads {FORMAT}; export it again")
        _require_whole(path / LISTING, members, decision)
        with ThreadPoolExecutor() as pool:  # gigabytes, and hashing leaves the interpreter alone
            list(pool.map(_verify, *zip(*files, strict=True)))
        return cls(
            path, tuple(_read_member(path / name, hashes) for name, hashes in members.items()), decision
        )

    @property
    def identity(self) -> str:
        """Of all its members, as they lie in the folder, whatever rules are written beside them."""
        listing = yaml.safe_load((self.path / LISTING).read_text())
        return digest(listing["members"], 16)

    def of_stage(self, name: str) -> list[Member]:
        """The members of one stage."""
        return [member for member in self.members if member.stage.name == name]

    def unseen(self, case_id: str) -> Bundle:
        """The bundle without the members that were trained on a case."""
        return replace(self, members=tuple(m for m in self.members if not m.has_seen(case_id)))

    def whole(self) -> Bundle:
        """The bundle with members that are shown whole ROIs."""
        return replace(self, members=tuple(member.whole() for member in self.members))

    def arm(self, name: str, kinds: Sequence[Mapping[str, Any]] | None, stage: str = "fine") -> Bundle:
        """The bundle with those members of a stage that belong to an ensemble arm; other stages stay whole.

        Args:
            name: Of the arm.
            kinds: `model` and `cte` of the members that belong to it; None is all.
            stage: The stage whose members are chosen.

        Raises:
            HnsegError: The bundle has no member of a kind.
        """
        if kinds is None:
            return self
        for kind in kinds:
            if not isinstance(kind, Mapping) or {"model", "cte"} - set(kind):
                raise HnsegError(
                    f"ensemble.members: {kind} names no kind of member; write {{model: NAME, cte: true}}"
                )
        wanted = [(kind["model"], bool(kind["cte"])) for kind in kinds]
        here = [_kind(member) for member in self.of_stage(stage)]
        if missing := [kind for kind in wanted if kind not in here]:
            present = ", ".join(dict.fromkeys(map(_kind_name, here))) or "none"
            raise HnsegError(
                f"ensemble={name}: {self.path} has no {stage} member {_kind_name(missing[0])}, only "
                f"{present}; export those too, or choose another ensemble"
            )
        chosen = [m for m in self.members if m.stage.name != stage or _kind(m) in wanted]
        return replace(self, members=tuple(chosen))


def _kind(member: Member) -> tuple[str, bool]:
    return member.card["model"], bool(member.card["input"]["cte"])


def _kind_name(kind: tuple[str, bool]) -> str:
    model, cte = kind
    return f"{model} {'with' if cte else 'without'} enhancement"


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
    unfinished = [str(folder) for folder in folders if not (folder / "score.json").exists()]
    if unfinished:
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
    try:
        with replacing_folder(out) as new:
            return _write_members(trained, new)
    except (OSError, SafetensorError) as error:
        raise HnsegError(f"{out}: cannot be written ({error}); choose another --out") from error


def _write_members(trained: Iterable[Trained], out: Path) -> list[str]:
    cards: dict[str, dict[str, Any]] = {}
    for card, network in trained:
        if card["name"] in cards:
            raise HnsegError(
                f"a second member {card['name']}; a bundle holds one of each name, and arm=NAME gives a "
                "training or an import another"
            )
        cards[card["name"]] = card
        _write_member(card, network, out / card["name"])
    hashes = {
        name: {file.name: digest_file(file) for file in sorted((out / name).iterdir())} for name in cards
    }
    last = last_stage(list(cards.values()))
    listing = {"format": FORMAT, "members": hashes, "decision": last["decision"]}
    text = model_card(list(cards.values()), last, last["decision"])
    (out / MODEL_CARD).write_text(text, encoding="utf-8")
    (out / LISTING).write_text(yaml.safe_dump(listing, sort_keys=False))
    return list(cards)


def _write_member(card: dict[str, Any], network: nn.Module, folder: Path) -> None:
    if spoilt := [name for name, one in network.state_dict().items() if not one.isfinite().all()]:
        raise HnsegError(
            f"{card['name']}: its weights are no numbers any more (NaN or infinite, {spoilt[0]} first); "
            "choose another --checkpoint, or leave it out"
        )
    folder.mkdir()
    # nnU-Net's decoder holds its encoder: save_model writes a tensor with two names once.
    save_model(network, str(folder / WEIGHTS))
    (folder / WEIGHTS).chmod(0o644)
    (folder / CARD_FILE).write_text(yaml.safe_dump(card, sort_keys=False))


def _read_member(folder: Path, hashes: Mapping[str, str]) -> Member:
    return Member(yaml.safe_load((folder / CARD_FILE).read_text()), folder / WEIGHTS, hashes[WEIGHTS])


def last_stage(cards: list[dict[str, Any]]) -> dict[str, Any]:
    """A card of the last stage, whose rules make the mask; all its members must agree on them."""
    last = next(
        stage for stage in ("fine", "coarse", "head") if any(c["stage"]["name"] == stage for c in cards)
    )
    members = [card for card in cards if card["stage"]["name"] == last]
    if any(card["decision"] != members[0]["decision"] for card in members):
        raise HnsegError(f"the {last} members disagree on recipe.decision; export runs of one recipe")
    return members[0]


def _require_whole(listing: Path, members: Mapping[str, Mapping[str, str]], decision: Any) -> None:
    """Refuses a listing without rules, or with a member that lacks one of its files."""
    if not isinstance(decision, dict):
        raise HnsegError(f"{listing}: decision={decision}: no rules; export the bundle again")
    for name, hashes in members.items():
        if lacking := [file for file in (CARD_FILE, WEIGHTS) if file not in hashes]:
            raise HnsegError(f"{listing}: {name} has no {' and '.join(lacking)}; export the bundle again")


def _verify(path: Path, expected: str) -> None:
    try:
        found = digest_file(path)
    except FileNotFoundError as error:
        raise HnsegError(f"{path}: missing from the bundle; copy or export it again") from error
    except OSError as error:
        raise HnsegError(f"{path}: cannot be read ({error.strerror}); allow it") from error
    if found != expected:
        raise HnsegError(f"{path}: altered since the bundle was made; export it again")


def write_rules(bundle: Bundle, decision: Mapping[str, Any], note: str) -> None:
    """Writes rules into a bundle, and tells of them in its model card.

    They hold for these members: a bundle made or extended from it has its members' own rules again.

    Args:
        bundle: The bundle, with all its members.
        decision: All of its new rules.
        note: What a reader should know of them, in a sentence.

    Raises:
        HnsegError: The bundle cannot be written.
    """
    listing = yaml.safe_load((bundle.path / LISTING).read_text()) | {"decision": dict(decision)}
    cards = [member.card for member in bundle.members]
    with replacing(bundle.path / LISTING) as temporary:
        temporary.write_text(yaml.safe_dump(listing, sort_keys=False))
    with replacing(bundle.path / MODEL_CARD) as temporary:
        temporary.write_text(model_card(cards, last_stage(cards), decision, note), encoding="utf-8")
