"""Probabilities → labels."""

from __future__ import annotations

from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

Rule = Literal["half", "argmax"]


def decide(foreground: NDArray[np.float32], rule: Rule) -> NDArray[np.uint8]:
    """Chooses a label for every voxel.

    Args:
        foreground: Class probabilities without background, (K, z, y, x); the background has the rest.
        rule: `half` wants at least 0.5, and takes the larger where several pass (paper); `argmax` wants
            more than the background. Between equal classes the first wins.

    Returns:
        Labels (z, y, x): 0 background, 1 the first class, and so on.
    """
    winner = foreground.argmax(axis=0)
    strongest = np.take_along_axis(foreground, winner[None], axis=0)[0]
    bar = 0.5 if rule == "half" else 1 - foreground.sum(axis=0)
    passed = strongest >= bar if rule == "half" else strongest > bar
    return np.where(passed, winner + 1, 0).astype(np.uint8)


def remove_small(labels: NDArray[np.uint8], voxel_ml: float, min_ml: float) -> NDArray[Any]:
    """Drops 26-connected components below a volume, class by class.

    The paper's post-processing; its size is not given (`recipe.decision.min_component_ml`).

    Args:
        labels: (z, y, x).
        voxel_ml: Volume of a voxel in ml.
        min_ml: Smallest component that stays, ml.
    """
    threshold = int(np.ceil(min_ml / voxel_ml - 1e-6))
    if threshold <= 1:
        return labels
    kept = labels.copy()
    for label in np.unique(labels[labels > 0]):
        component = (labels == label).astype(np.uint8)
        kept[(component > 0) & (cc3d.dust(component, threshold=threshold, connectivity=26) == 0)] = 0
    return kept
