"""How far a threshold gets: the best SUV threshold that the ground truth itself can choose.

A network must score higher than this to have learnt more than "hot is tumour".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from hnseg.data.resample import to_image
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case
from hnseg.imaging.grid import Grid
from hnseg.imaging.images import read_label, to_array
from hnseg.imaging.masks import centroid
from hnseg.imaging.suv import read_pet
from hnseg.metrics.official import CLASSES, GTVN, GTVP, Overlap, ratio_of_sums

SUVS = tuple(float(suv) for suv in np.geomspace(1.0, 20.0, 45))
ROI_SIZE, ROI_SPACING = (48, 48, 48), (3.0, 3.0, 3.0)  # 144 mm, as the fine stage's


@dataclass(frozen=True)
class ThresholdScore:
    """The best threshold of a cohort.

    Attributes:
        suv: The one threshold, for all cases, with the highest mean GTVp DSC.
        gtvp_dsc: Mean GTVp DSC with it.
        gtvn_dsc_agg: GTVn DSCagg with it.
        cases: Number of cases.
    """

    suv: float
    gtvp_dsc: float
    gtvn_dsc_agg: float
    cases: int

    def __str__(self) -> str:
        return (
            f"Oracle-helped threshold, {self.cases} cases: GTVp DSC {self.gtvp_dsc:.4f}, "
            f"GTVn DSCagg {self.gtvn_dsc_agg:.4f} at SUV {self.suv:.2f}"
        )


def oracle_threshold(cases: Sequence[Case], suvs: Sequence[float] = SUVS) -> ThresholdScore:
    """Score the best single SUV threshold inside the fine ROI, helped by the ground truth three times.

    The ground truth places the ROI (144 mm, centred on the mean voxel of all labels), picks the threshold,
    and gives each 26-connected component above it a class: those whose union has the highest GTVp DSC are
    GTVp, the rest GTVn. Scores are official, on the CT's grid; lesions outside the ROI count as missed, and a
    case without GTVp in ground truth and prediction scores 1.

    Args:
        cases: Those without a label are left out.
        suvs: Thresholds to try.

    Raises:
        HnsegError: No case with a label.
    """
    labelled = [case for case in cases if case.label]
    if not labelled:
        raise HnsegError("no case with a label; a threshold can only be scored against ground truth")
    results = track(labelled, "thresholds", console=Console(stderr=True))
    table = [_try_all(case, suvs) for case in results]  # cases × thresholds
    dice = np.array([[found["GTVp"].dice_or("one") for found in row] for row in table], dtype=np.float64)
    best = int(dice.mean(axis=0).argmax())
    return ThresholdScore(
        suv=suvs[best],
        gtvp_dsc=float(dice[:, best].mean()),
        gtvn_dsc_agg=ratio_of_sums(row[best]["GTVn"].dice_terms for row in table),
        cases=len(labelled),
    )


def split_components(suv: NDArray[Any], truth: NDArray[Any], threshold: float) -> NDArray[np.uint8]:
    """The best labels that a threshold can give if the ground truth chooses the class of each component.

    Of the 26-connected components of the voxels at or above the threshold, those whose union has the highest
    Dice with GTVp are GTVp, the rest GTVn. All arrays are (z, y, x) on one grid.
    """
    components = cc3d.connected_components(suv >= threshold, connectivity=26)
    sizes = np.bincount(components.ravel())
    shared = np.bincount(components[truth == GTVP], minlength=len(sizes))
    sizes[0] = shared[0] = 0  # background is no component
    # In this order the best union comes first: a further component helps only if its share is high enough.
    order = np.argsort(-shared / np.maximum(sizes, 1), kind="stable")
    dice = 2 * shared[order].cumsum() / np.maximum(sizes[order].cumsum() + (truth == GTVP).sum(), 1)
    chosen = int(dice.argmax()) + 1 if dice.max() > 0 else 0
    classes = np.full(len(sizes), GTVN, np.uint8)
    classes[order[:chosen]] = GTVP
    classes[0] = 0
    return classes[components]


def _try_all(case: Case, suvs: Sequence[float]) -> list[dict[str, Overlap]]:
    """The overlap by class that each threshold gives in one case; no uptake counts outside the ROI."""
    assert case.label is not None
    label = read_label(case.label)
    centre = centroid(label)
    if centre is None:
        return [dict.fromkeys(CLASSES, Overlap(0, 0, 0))] * len(suvs)
    grid = Grid.centred(centre.tolist(), ROI_SIZE, ROI_SPACING)
    filled = to_image(np.ones((1, *grid.shape), np.float32), grid, label)
    assert filled is not None  # the ROI is centred on the label
    (in_roi,), box = filled
    near = label[box[::-1]]
    pet = sitk.Resample(read_pet(case), near, sitk.Transform(), sitk.sitkLinear, 0.0)
    suv, truth = np.where(in_roi > 0, to_array(pet), np.float32(0)), to_array(near)
    voxel, overlaps = prod(label.GetSpacing()), []
    whole = {name: voxel * int((to_array(label) == value).sum()) for name, value in CLASSES.items()}
    for threshold in suvs:
        labels = split_components(suv, truth, threshold)
        inside = {name: Overlap.of(labels == value, truth == value, voxel) for name, value in CLASSES.items()}
        overlaps.append({name: replace(overlap, truth=whole[name]) for name, overlap in inside.items()})
    return overlaps
