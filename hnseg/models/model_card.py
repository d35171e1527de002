"""What a bundle says of itself to a reader: its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
