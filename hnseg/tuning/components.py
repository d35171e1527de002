"""One case's components, measured once, so that every setting of the post-processing can be scored on them.

Dropping a component changes no other one: what `remove_small` and `remove_faint` leave, and its official
scores, follow from each component's volume, SUVpeak and overlaps with the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hnseg.cases import Case
from hnseg.checks import SUV_LIMIT, SUV_REMEDY
from hnseg.errors import HnsegError
from hnseg.evaluation.score import crop_to_labels, read_masks
from hnseg.images import to_array
from hnseg.inference.components import components, least_voxels, suv_peak
from hnseg.metrics import GTVN, GTVP, CaseCounts, Overlap, Overlaps, match, overlapping_lesions
from hnseg.suv import read_pet


class Bar(NamedTuple):
    """What a component must reach to stay: a volume in ml and, of nodes, a SUVpeak; 0 asks for nothing."""

    ml: float = 0.0
    suv: float = 0.0


@dataclass(frozen=True)
class Components:
    """The components of one class in one case.

    Args:
        overlaps: Predicted and true ones, and what they share.
        voxel_ml: Volume of a voxel.
        peaks: (predicted components,) SUVpeak, infinite where the PET does not reach one; None: not measured.
    """

    overlaps: Overlaps
    voxel_ml: float
    peaks: NDArray[np.float64] | None = None

    def over(self, bar: Bar) -> Overlaps:
        """What is left of the prediction when what does not reach the bar is dropped."""
        keep = self.overlaps.prediction_size >= least_voxels(bar.ml, self.voxel_ml)
        if bar.suv and self.peaks is not None:
            keep &= self.peaks >= bar.suv
        return self.overlaps.of_predictions(keep)

    def volumes(self, left: Overlaps) -> Overlap:
        """The overlap in mm³ of what is left."""
        voxels = (left.intersection.sum(), left.prediction_size.sum(), left.truth_size.sum())
        return Overlap(*(int(count) * self.voxel_ml * 1000 for count in voxels))


@dataclass(frozen=True)
class CaseComponents:
    """The components of one case: GTVp, and GTVn with their SUVpeaks."""

    gtvp: Components
    gtvn: Components

    def counts(self, gtvp: Bar, gtvn: Bar) -> CaseCounts:
        """The case's share of the official scores after post-processing."""
        nodes = self.gtvn.over(gtvn)
        return CaseCounts(
            gtvp=self.gtvp.volumes(self.gtvp.over(gtvp)),
            gtvn=self.gtvn.volumes(nodes),
            lesions=match(nodes),
        )


def read_components(case: Case, prediction: Path) -> CaseComponents:
    """Measures a case.

    Args:
        case: With a true mask; its PET must be SUV.
        prediction: A mask on the truth's grid, nothing dropped from it.

    Raises:
        HnsegError: Files that cannot be read, masks on two grids, or a PET that is not SUV.
    """
    assert case.label is not None
    predicted, true = read_masks(prediction, case.label)
    pet = read_pet(case)
    peaks = [suv_peak(part, pet) for _, part in components(predicted, GTVN)]
    if strange := [peak for peak in peaks if peak is not None and peak > SUV_LIMIT]:
        raise HnsegError(f"{case.pet}: SUVpeak {strange[0]:.3g} in a node, Bq/ml or counts; {SUV_REMEDY}")
    voxel_ml = float(np.prod(predicted.GetSpacing())) / 1000
    labels, truth = crop_to_labels(to_array(predicted), to_array(true))
    gtvp, gtvn = (overlapping_lesions(labels == name, truth == name) for name in (GTVP, GTVN))
    shown = np.array([np.inf if peak is None else peak for peak in peaks])
    return CaseComponents(Components(gtvp, voxel_ml), Components(gtvn, voxel_ml, shown))
