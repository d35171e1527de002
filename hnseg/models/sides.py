"""What volumes a network can be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def divisor(model: Mapping[str, Any]) -> tuple[int, int, int]:
    """What each side (z, y, x) of a network's input must be a multiple of.

    Args:
        model: `architecture` and its `settings`, as in conf/model.
    """
    settings = model["settings"]
    if model["architecture"] == "segresnet":
        side = 2 ** (len(settings["blocks_down"]) - 1)
        return side, side, side
    steps = np.prod([np.broadcast_to(stride, 3) for stride in settings["strides"]], axis=0)
    return int(steps[0]), int(steps[1]), int(steps[2])
