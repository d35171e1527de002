"""Other decision rules for a bundle that is there; its members, their hashes and converted networks stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from hnseg.files import replacing
from hnseg.models.bundle import LISTING, MODEL_CARD, Bundle, last_stage
from hnseg.models.model_card import model_card


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
