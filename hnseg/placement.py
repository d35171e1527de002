"""Where the next stage looks, and what is done when the stage before found nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk

from hnseg import geometry
from hnseg.errors import HnsegError
from hnseg.geometry import Grid
from hnseg.stage import Stage

# An adult head is 3 to 5 litres; a component this small is a stray.
MIN_HEAD_ML = 200.0
# Smoothing before the hottest voxel is sought: one noisy voxel is no lesion.
_SMOOTHING_MM = 6.0


def place(
    stage: Stage,
    ct: sitk.Image,
    pet: sitk.Image,
    found: sitk.Image | None,
    *,
    fallback: Literal["chain", "fail"] = "chain",
    drawn: bool = False,
) -> tuple[Grid, str | None]:
    """Places a stage's grid on a case.

    Args:
        stage: The stage.
        ct: CT, HU.
        pet: PET, SUV.
        found: What the stage before found, on its own grid: a head mask or lesion labels.
        fallback: Where that is nothing, `chain` looks somewhere sensible and `fail` gives up.
        drawn: A head mask that somebody has drawn or checked is a head however small; a network's may be
            a stray.

    Returns:
        The grid, and the fallback that was taken, if one was.

    Raises:
        HnsegError: Nothing was found and `fallback` is `fail`.
    """
    if stage.placement == "below_head" and not _is_head(found, 0.0 if drawn else MIN_HEAD_ML):
        _require(fallback, "head")
        grid = geometry.top_of_scan_grid(ct, stage.size, stage.spacing)
        return grid, "no head: ROI hung from the top of the scan"
    if stage.placement == "lesions" and (found is None or geometry.centroid(found) is None):
        _require(fallback, "coarse")
        center, what = _hottest(pet, found, ct)
        return Grid.centred(center, stage.size, stage.spacing), f"nothing coarse: ROI on {what}"
    return stage.grid(ct, found), None


def _require(fallback: str, stage: str) -> None:
    if fallback == "fail":
        raise HnsegError(
            f"the {stage} stage found nothing, and fallback=fail ends the case there; take members whose "
            "recipe says fallback=chain"
        )


def _is_head(mask: sitk.Image | None, min_ml: float) -> bool:
    component = None if mask is None else geometry.largest_component(mask)
    return component is not None and component.ml >= min_ml


def _hottest(pet: sitk.Image, region: sitk.Image | None, ct: sitk.Image) -> tuple[geometry.Point, str]:
    """The brightest smoothed PET voxel inside the coarse ROI (the whole CT without one)."""
    # ITK's recursive Gaussian needs four voxels a side; thinner PET is searched as it is.
    smooth = sitk.SmoothingRecursiveGaussian(pet, _SMOOTHING_MM) if min(pet.GetSize()) >= 4 else pet
    inside = sitk.Resample(
        smooth,
        region if region is not None else ct,
        sitk.Transform(),
        sitk.sitkLinear,
        0.0,
    )
    array = sitk.GetArrayViewFromImage(inside)
    low, high = geometry.bounds(inside)
    if float(array.max()) <= float(array.min()):
        return (low + high) / 2, "the middle of the coarse ROI"
    index = np.unravel_index(int(array.argmax()), array.shape)[::-1]
    return np.asarray(inside.TransformIndexToPhysicalPoint([int(i) for i in index])), "the brightest PET"
