"""Where the next stage looks, also when the stage before found nothing, and what the scan shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hnseg.errors import HnsegError
from hnseg.imaging import masks
from hnseg.imaging.grid import Grid, Point, bounds, top_of_scan_grid
from hnseg.imaging.masks import positions
from hnseg.imaging.stage import Stage
from hnseg.imaging.suv import sphere_means

# Points a side on which a ROI is tried: 6 mm apart in the coarse ROI, so that a slice less is not told.
_POINTS = 48
# A head is cut off where this much of its cross-section lies this near to the end of the scan. A vertex that
# the scan holds whole has less than 40 cm2 one centimetre below its top.
_CUT_CM2, _NEAR_END_MM, _LATTICE_MM = 50.0, 10.0, 4.0


class Cuts(NamedTuple):
    """Whether the scan ends in the head, above and below."""

    top: bool
    bottom: bool


def shown(image: sitk.Image, grid: Grid) -> NDArray[np.bool_]:
    """Which voxels (z, y, x) of a grid have their centres in the image's field of view."""
    size = np.asarray(image.GetSize())
    whole = sitk.Image(1, 1, 1, sitk.sitkUInt8) + 1  # one voxel as large as the image
    whole.SetSpacing((size * image.GetSpacing()).tolist())
    whole.SetDirection(image.GetDirection())
    whole.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
    return sampled(whole, grid) > 0


def without_pet(grids: Sequence[Grid], ct: sitk.Image, pet: sitk.Image) -> float:
    """Share of the ROI that the CT shows and the PET does not; 0 where the CT shows none of it.

    Args:
        grids: The cubes of the ROI, one or several.
        ct: CT, any grid.
        pet: PET, on a grid of its own.
    """
    points = [Grid.centred(grid.center, [_POINTS] * 3, (grid.extent / _POINTS).tolist()) for grid in grids]
    in_ct = np.stack([shown(ct, one) for one in points])
    in_pet = np.stack([shown(pet, one) for one in points])
    return float((in_ct & ~in_pet).sum() / max(int(in_ct.sum()), 1))


def cuts(head: sitk.Image, ct: sitk.Image) -> Cuts:
    """Whether the CT ends in the head.

    Args:
        head: Mask, non-zero inside the head, any grid.
        ct: CT, any orientation.
    """
    low, high = bounds(head)
    size = np.maximum(np.ceil((high - low) / _LATTICE_MM), 1).astype(int).tolist()
    lattice = Grid.centred((low + high) / 2, size, [_LATTICE_MM] * 3)
    inside = sampled(head, lattice) != 0
    x, y, z = lattice.origin

    def cut(mm: float) -> bool:
        beyond = inside & ~shown(ct, replace(lattice, origin=(x, y, z + mm)))
        return bool(beyond.any(axis=0).sum() * _LATTICE_MM**2 / 100 >= _CUT_CM2)

    return Cuts(top=cut(_NEAR_END_MM), bottom=cut(-_NEAR_END_MM))


def sampled(image: sitk.Image, grid: Grid, how: int = sitk.sitkNearestNeighbor) -> NDArray[Any]:
    """The image's values (z, y, x) on a grid by an interpolator of SimpleITK's, zero outside it."""
    identity = np.eye(3).ravel().tolist()
    return sitk.GetArrayFromImage(
        sitk.Resample(image, grid.size, sitk.Transform(), how, grid.origin, grid.spacing, identity, 0.0)
    )


# About a PET voxel: a fixed lattice costs the same for every PET.
_BRIGHTEST_LATTICE_MM = 4.0
# A region reaches as far as the uptake is above this share of its peak.
_CONTOUR = 0.5
# Noise is smaller than a lesion; the brain, the heart and flat background are larger.
_LEAST_ML, _MOST_ML = 0.5, 300.0


class Region(NamedTuple):
    """A region of uptake.

    Args:
        center: Its mean position, LPS mm (x, y, z).
        suv_peak: The highest mean over a sphere of 1 ml.
    """

    center: Point
    suv_peak: float


def brightest(
    pet: sitk.Image, ct: sitk.Image, low: Point, high: Point, brain_above: float = np.inf
) -> Region | None:
    """The region with the greatest SUVpeak in a box, apart from the brain.

    A region is what hangs together at half its peak. The brain is what reaches above a given height, or to
    the top of what is searched: a ROI that begins within the head cuts it there. Searched whole it is, like
    the heart, too large for a lesion. Other physiological uptake (tonsils, glands, larynx) is as small as a
    lesion, and paired no more strictly than nodes are: it is not told apart.

    Args:
        pet: SUV, any grid.
        ct: CT, any grid; uptake that it does not show could not be in the mask.
        low: Lowest corner of the box, mm (x, y, z).
        high: Highest corner, mm (x, y, z).
        brain_above: Patient z in mm above which uptake is the brain's.

    Returns:
        None where no region has the size of a lesion, as in flat PET.
    """
    size = np.maximum(np.ceil((high - low) / _BRIGHTEST_LATTICE_MM), 1).astype(int).tolist()
    lattice = Grid.centred((low + high) / 2, size, [_BRIGHTEST_LATTICE_MM] * 3)
    seen = shown(pet, lattice) & shown(ct, lattice)
    suv = np.where(seen, sphere_means(sampled(pet, lattice, sitk.sitkLinear), lattice.spacing, seen), 0.0)
    brain = _uppermost(seen)
    brain[lattice.origin[2] + np.arange(lattice.size[2]) * _BRIGHTEST_LATTICE_MM > brain_above] = True
    left = np.where(brain, 0.0, suv)
    while (peak := float(left.max())) > 0:
        parts, _ = ndimage.label(suv >= _CONTOUR * peak, np.ones((3, 3, 3)))
        region = parts == parts[np.unravel_index(left.argmax(), left.shape)]
        ml = float(region.sum()) * _BRIGHTEST_LATTICE_MM**3 / 1000
        if _LEAST_ML <= ml <= _MOST_ML and not (region & brain).any():
            return Region(positions(lattice.image(region.astype(np.uint8))).mean(axis=0), peak)
        left[region] = 0.0
    return None


def _uppermost(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The highest voxel of each column (z, y, x) that is seen."""
    above = np.zeros_like(seen)
    above[:-1] = np.maximum.accumulate(seen[:0:-1])[::-1]
    return seen & ~above


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
        grid = top_of_scan_grid(ct, stage.size, stage.spacing)
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
    low, high = bounds(ct)
    if searched is None:
        low[2] = max(low[2], high[2] - _DEPTH_MM)
    else:
        first, last = bounds(searched)
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
