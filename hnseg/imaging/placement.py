"""Places a stage's grid on a case, and measures how much of it the scans show.

`place_grid` has the stage's rule; `place` adds fallbacks where the stage before found nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, NamedTuple

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.card import Stage
from hnseg.errors import HnsegError
from hnseg.imaging import masks
from hnseg.imaging.grid import Grid, bounds, coarse_grid, nearest_corner, sample, top_of_scan_grid
from hnseg.imaging.masks import Point
from hnseg.imaging.suv import sphere_means

# An adult head is 3 to 5 litres; a component this small is a stray.
MIN_HEAD_ML = 200.0
# Without a coarse ROI: no lesion of HECKTOR's lies deeper under the top of its CT than 330 mm.
_DEPTH_MM = 350.0


class Fallback(StrEnum):
    """How a ROI was placed where the stage before found nothing."""

    NO_HEAD = "no_head"  # from the top of the scan down
    BRIGHTEST_PET = "brightest_pet"  # no coarse lesion: on the brightest PET outside the brain
    MIDDLE = "middle"  # no coarse lesion, and no PET that stands out: in the middle of what was searched


@dataclass(frozen=True)
class PlacedRoi:
    """A stage's grid on a case, and the fallback that placed it (with SUVpeak of the brightest PET)."""

    grid: Grid
    fallback: Fallback | None = None
    suv_peak: float | None = None

    @property
    def note(self) -> str:
        """The fallback in a sentence; empty without one."""
        match self.fallback:
            case None:
                return ""
            case Fallback.NO_HEAD:
                return "no head: ROI hung from the top of the scan"
            case Fallback.BRIGHTEST_PET:
                x, y, z = self.grid.center
                where = f"SUVpeak {self.suv_peak:.1f} at ({x:.0f}, {y:.0f}, {z:.0f}) mm"
                return f"nothing coarse: ROI on the brightest PET outside the brain, {where}"
            case Fallback.MIDDLE:
                return "nothing coarse: ROI on the middle of what was searched, no PET stands out"


def place_grid(stage: Stage, ct: sitk.Image, reference: sitk.Image | None = None) -> Grid:
    """Places a stage's grid on a case by the stage's rule.

    A mean voxel is rounded, as the authors' index is: predictions that differ a little, as those of bfloat16
    and float32 do, nearly always place the grid alike.

    Args:
        stage: The stage.
        ct: CT, HU.
        reference: The head mask for `below_head`, a lesion label image for `lesions`.

    Raises:
        HnsegError: The placement needs a reference, and there is none or it is empty.
    """
    if stage.placement == "top_of_scan":
        return top_of_scan_grid(ct, stage.size, stage.spacing, stage.lateral)
    if stage.placement == "scan":
        low, high = bounds(ct)
        return Grid.centred((low + high) / 2, stage.size, stage.spacing)
    if reference is None or not sitk.GetArrayViewFromImage(reference).any():
        what = "no head mask" if stage.placement == "below_head" else "no lesion voxel"
        raise HnsegError(f"{what} to place the {stage.name} ROI by")
    if stage.placement == "below_head":
        return coarse_grid(reference, stage.size, stage.spacing, stage.top)
    center = nearest_corner(reference, masks.positions(reference).mean(axis=0))
    return Grid.centred(center, stage.size, stage.spacing)


def place(
    stage: Stage,
    ct: sitk.Image,
    pet: sitk.Image,
    found: sitk.Image | None,
    *,
    fallback: Literal["chain", "fail"] = "chain",
    manual: bool = False,
    head: sitk.Image | None = None,
) -> PlacedRoi:
    """Places a stage's grid on a case, by a fallback where the stage before found nothing.

    Args:
        stage: The stage.
        ct: CT, HU.
        pet: PET, SUV.
        found: What the stage before found, on its own grid: a head mask or lesion labels.
        fallback: Where that is nothing, `chain` looks somewhere sensible and `fail` ends the case.
        manual: A head mask drawn or checked by hand is a head however small; a network's may be a stray.
        head: For lesions, the head's mask where there is one: the brain is in its upper half.

    Raises:
        HnsegError: Nothing was found and `fallback` is `fail`.
    """
    no_head = stage.placement == "below_head" and not _is_head(found, 0.0 if manual else MIN_HEAD_ML)
    no_lesion = stage.placement == "lesions" and (
        found is None or not sitk.GetArrayViewFromImage(found).any()
    )
    if not no_head and not no_lesion:
        return PlacedRoi(place_grid(stage, ct, found))
    if fallback == "fail":
        raise HnsegError(
            f"the {'localiser' if no_head else 'coarse'} stage found nothing, and fallback=fail ends the "
            "case there; decision.fallback=chain looks on"
        )
    if no_head:
        return PlacedRoi(top_of_scan_grid(ct, stage.size, stage.spacing), Fallback.NO_HEAD)
    low, high = bounds(ct)
    if found is None:
        low[2] = max(low[2], high[2] - _DEPTH_MM)
    else:  # the part of the CT that the coarse stage searched
        first, last = bounds(found)
        low, high = np.maximum(low, first), np.minimum(high, last)
    region = brightest(pet, ct, low, high, _eye_height(head, ct))
    if region is None:
        return PlacedRoi(Grid.centred((low + high) / 2, stage.size, stage.spacing), Fallback.MIDDLE)
    grid = Grid.centred(region.center, stage.size, stage.spacing)
    return PlacedRoi(grid, Fallback.BRIGHTEST_PET, region.suv_peak)


def _is_head(mask: sitk.Image | None, min_ml: float) -> bool:
    component = None if mask is None else masks.largest_component(mask)
    return component is not None and component.ml >= min_ml


def _eye_height(head: sitk.Image | None, ct: sitk.Image) -> float:
    """Patient z in mm halfway up the head, where the eyes are and the brain begins.

    Infinite without a head, or where the CT cuts its top off: then the brain reaches the top of the search.
    """
    if head is None or not _is_head(head, MIN_HEAD_ML) or cuts(head, ct).top:
        return np.inf
    low, high = masks.mask_bounds(head)
    return float(low[2] + high[2]) / 2


# About a PET voxel: a fixed lattice costs the same for every PET.
_LATTICE_MM = 4.0
# A region reaches as far as the uptake is above this part of its peak.
_CONTOUR = 0.5
# Noise is smaller than a lesion; the brain, the heart and flat background are larger.
_MIN_ML, _MAX_ML = 0.5, 300.0


class Region(NamedTuple):
    """Mean position in LPS mm (x, y, z) and SUVpeak (highest mean over a sphere of 1 ml) of an uptake."""

    center: Point
    suv_peak: float


def brightest(
    pet: sitk.Image, ct: sitk.Image, low: Point, high: Point, brain_above: float = np.inf
) -> Region | None:
    """The region with the greatest SUVpeak in a box, apart from the brain.

    A region is a 26-connected component above half its peak. The brain reaches above a given height, or to
    the top of the box: a ROI that begins within the head cuts it there. A brain that lies in the box whole
    is, like the heart, too large for a lesion. Other physiological uptake (tonsils, glands, larynx) is as
    small as a lesion, and as symmetric as nodes are: it is not excluded.

    Args:
        pet: SUV, any grid.
        ct: CT, any grid; uptake outside its field of view does not count, as it could not be in the mask.
        low: Lowest corner of the box, mm (x, y, z).
        high: Highest corner.
        brain_above: Patient z in mm above which uptake is the brain's.

    Returns:
        None where no region has the size of a lesion, as in flat PET.
    """
    lattice = _lattice(low, high)
    seen = in_field_of_view(pet, lattice) & in_field_of_view(ct, lattice)
    suv = np.where(seen, sphere_means(sample(pet, lattice, sitk.sitkLinear), lattice.spacing, seen), 0.0)
    brain = _topmost(seen)
    brain[lattice.origin[2] + np.arange(lattice.size[2]) * _LATTICE_MM > brain_above] = True
    left = np.where(brain, 0.0, suv)
    while (peak := float(left.max())) > 0:
        parts = cc3d.connected_components(suv >= _CONTOUR * peak, connectivity=26)
        region = parts == parts[np.unravel_index(left.argmax(), left.shape)]
        ml = float(region.sum()) * masks.voxel_ml(lattice.spacing)
        if _MIN_ML <= ml <= _MAX_ML and not (region & brain).any():
            return Region(masks.positions(lattice.image(region.astype(np.uint8))).mean(axis=0), peak)
        left[region] = 0.0
    return None


def _lattice(low: Point, high: Point) -> Grid:
    """Points of `_LATTICE_MM` that fill a box, mm (x, y, z)."""
    size = np.maximum(np.ceil((high - low) / _LATTICE_MM), 1).astype(int).tolist()
    return Grid.centred((low + high) / 2, size, [_LATTICE_MM] * 3)


def _topmost(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The highest voxel that is seen in each column (z, y, x)."""
    above = np.zeros_like(seen)
    above[:-1] = np.maximum.accumulate(seen[:0:-1])[::-1]
    return seen & ~above


def in_field_of_view(image: sitk.Image, grid: Grid) -> NDArray[np.bool_]:
    """Which voxels (z, y, x) of a grid have their centres in the image's field of view."""
    size = np.asarray(image.GetSize())
    whole = sitk.Image(1, 1, 1, sitk.sitkUInt8) + 1  # one voxel as large as the image
    whole.SetSpacing((size * image.GetSpacing()).tolist())
    whole.SetDirection(image.GetDirection())
    whole.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
    return sample(whole, grid) > 0


# Points a side on which a ROI is tried: 6 mm apart in the coarse ROI, so that a slice less is no warning.
_POINTS = 48


def without_pet(grids: Sequence[Grid], ct: sitk.Image, pet: sitk.Image) -> float:
    """Part of what the CT shows of a ROI (its cubes) that the PET does not; 0 if the CT shows none."""
    points = [Grid.centred(grid.center, [_POINTS] * 3, (grid.extent / _POINTS).tolist()) for grid in grids]
    in_ct = np.stack([in_field_of_view(ct, cube) for cube in points])
    in_pet = np.stack([in_field_of_view(pet, cube) for cube in points])
    return float((in_ct & ~in_pet).sum() / max(int(in_ct.sum()), 1))


# A head is cut off where this much of its cross-section lies this near to the end of the scan. A vertex that
# the scan holds whole has less than 40 cm2 one centimetre below its top.
_CUT_CM2, _NEAR_END_MM = 50.0, 10.0


class Cuts(NamedTuple):
    """Whether the scan ends in the head, above and below."""

    top: bool
    bottom: bool


def cuts(head: sitk.Image, ct: sitk.Image) -> Cuts:
    """Whether the CT ends in the head, a mask on any grid."""
    lattice = _lattice(*bounds(head))
    inside = sample(head, lattice) != 0
    x, y, z = lattice.origin

    def cut(mm: float) -> bool:
        beyond = inside & ~in_field_of_view(ct, replace(lattice, origin=(x, y, z + mm)))
        return bool(beyond.any(axis=0).sum() * _LATTICE_MM**2 / 100 >= _CUT_CM2)

    return Cuts(top=cut(_NEAR_END_MM), bottom=cut(-_NEAR_END_MM))
