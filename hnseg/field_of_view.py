"""What a scan shows of a ROI and of the head, and what lies beyond its faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.geometry import Grid, bounds

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
