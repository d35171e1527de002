"""The brightest PET that may be a lesion: where to look when no network has found one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hnseg.field_of_view import sampled, shown
from hnseg.geometry import Grid, Point
from hnseg.masks import positions
from hnseg.suv_peak import sphere_means

# About a PET voxel: a fixed lattice costs the same for every PET.
_LATTICE_MM = 4.0
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
    size = np.maximum(np.ceil((high - low) / _LATTICE_MM), 1).astype(int).tolist()
    lattice = Grid.centred((low + high) / 2, size, [_LATTICE_MM] * 3)
    seen = shown(pet, lattice) & shown(ct, lattice)
    suv = np.where(seen, sphere_means(sampled(pet, lattice, sitk.sitkLinear), lattice.spacing, seen), 0.0)
    brain = _uppermost(seen)
    brain[lattice.origin[2] + np.arange(lattice.size[2]) * _LATTICE_MM > brain_above] = True
    left = np.where(brain, 0.0, suv)
    while (peak := float(left.max())) > 0:
        parts, _ = ndimage.label(suv >= _CONTOUR * peak, np.ones((3, 3, 3)))
        region = parts == parts[np.unravel_index(left.argmax(), left.shape)]
        ml = float(region.sum()) * _LATTICE_MM**3 / 1000
        if _LEAST_ML <= ml <= _MOST_ML and not (region & brain).any():
            return Region(positions(lattice.image(region.astype(np.uint8))).mean(axis=0), peak)
        left[region] = 0.0
    return None


def _uppermost(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The highest voxel of each column (z, y, x) that is seen."""
    above = np.zeros_like(seen)
    above[:-1] = np.maximum.accumulate(seen[:0:-1])[::-1]
    return seen & ~above
