"""Where the next stage looks, and what is done when the stage before found nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk

from hnseg import geometry, masks
from hnseg.brightest import brightest
from hnseg.errors import HnsegError
from hnseg.field_of_view import cuts
from hnseg.geometry import Grid, Point
from hnseg.stage import Stage

# An adult head is 3 to 5 litres; a component this small is a stray.
MIN_HEAD_ML = 200.0
# Without a coarse ROI: no lesion of HECKTOR's lies deeper under the top of its CT than 330 mm.
_DEPTH_MM = 350.0


def place(
    stage: Stage,
    ct: sitk.Image,
    pet: sitk.Image,
    found: sitk.Image | None,
    *,
    fallback: Literal["chain", "fail"] = "chain",
    drawn: bool = False,
    head: sitk.Image | None = None,
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
        head: For lesions, the head's mask where there is one: it tells where the brain is.

    Returns:
        The grid, and the fallback that was taken, if one was.

    Raises:
        HnsegError: Nothing was found and `fallback` is `fail`.
    """
    if stage.placement == "below_head" and not _is_head(found, 0.0 if drawn else MIN_HEAD_ML):
        _require(fallback, "head")
        grid = geometry.top_of_scan_grid(ct, stage.size, stage.spacing)
        return grid, "no head: ROI hung from the top of the scan"
    if stage.placement == "lesions" and (found is None or masks.centroid(found) is None):
        _require(fallback, "coarse")
        center, what = _brightest(pet, ct, found, head)
        return Grid.centred(center, stage.size, stage.spacing), f"nothing coarse: ROI on {what}"
    return stage.grid(ct, found), None


def _require(fallback: str, stage: str) -> None:
    if fallback == "fail":
        raise HnsegError(
            f"the {stage} stage found nothing, and fallback=fail ends the case there; "
            "decision.fallback=chain looks on"
        )


def _is_head(mask: sitk.Image | None, min_ml: float) -> bool:
    component = None if mask is None else masks.largest_component(mask)
    return component is not None and component.ml >= min_ml


def _brightest(
    pet: sitk.Image, ct: sitk.Image, searched: sitk.Image | None, head: sitk.Image | None
) -> tuple[Point, str]:
    """Where the brightest PET lies in what the coarse stage searched (the top of the CT without one)."""
    low, high = geometry.bounds(ct)
    if searched is None:
        low[2] = max(low[2], high[2] - _DEPTH_MM)
    else:
        first, last = geometry.bounds(searched)
        low, high = np.maximum(low, first), np.minimum(high, last)
    region = brightest(pet, ct, low, high, _eyes(head, ct))
    if region is None:
        return (low + high) / 2, "the middle of what was searched, no PET stands out"
    x, y, z = region.center
    where = f"SUVpeak {region.suv_peak:.1f} at ({x:.0f}, {y:.0f}, {z:.0f}) mm"
    return region.center, f"the brightest PET outside the brain, {where}"


def _eyes(head: sitk.Image | None, ct: sitk.Image) -> float:
    """Patient z in mm halfway up the head: the eyes' height, and the brain above it.

    Infinite without a head, or where the CT cuts its top off: then the brain reaches the top of the search.
    """
    if head is None or not _is_head(head, MIN_HEAD_ML) or cuts(head, ct).top:
        return np.inf
    low, high = masks.mask_bounds(head)
    return float(low[2] + high[2]) / 2
