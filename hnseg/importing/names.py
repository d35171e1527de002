"""Names of classes and channels in foreign files, held against hnseg's order of them.

People name what they train on as they like, so that only a name which is known, and stands where another
belongs, tells that two were swapped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Words that begin so: CT, CTAC, PET_sqrt, SUVbw; but no PTV, which is a contour.
_MODALITIES = {"CT": re.compile(r"(?<![a-z])ct"), "PET": re.compile(r"(?<![a-z])(pet|suv|pt(?![a-z]))")}


def misplaced(told: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a name that is among the wanted ones, however it is spelt, stands in another's place."""
    places = {name.lower(): n for n, name in enumerate(wanted)}
    return any(places.get(name.lower(), n) != n for n, name in enumerate(told))


def swapped(told: Sequence[str], shown: Sequence[str]) -> bool:
    """Whether a channel is named after PET where hnseg shows CT, or the other way round.

    Args:
        told: Names of the channels, whoever gave them.
        shown: As `hnseg.data.intensity.InputSpec.channel_names`, as many.
    """
    pairs = zip(told, shown, strict=True)
    return any(set(map(_modality, pair)) == set(_MODALITIES) for pair in pairs)


def _modality(name: str) -> str | None:
    """CT or PET; None where a name is neither's, or both's."""
    found = [modality for modality, word in _MODALITIES.items() if word.search(name.lower())]
    return found[0] if len(found) == 1 else None
