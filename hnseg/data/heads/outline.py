"""The scan on a coarse upright lattice, and what of it is body."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hnseg.data.resample import AIR_HU
from hnseg.geometry import BODY_HU, Grid, bounds

Mask = NDArray[np.bool_]

LATTICE_MM = 3.0  # half the thickness of a skull: coarse enough to be fast, fine enough to keep it closed
SEARCH_MM = 700.0  # raised arms reach 400 mm above the vertex, the chin lies 250 mm below it
# Couch shells, head rests and masks are thinner than 12 mm; nose and ears, thin too, are grown back.
_THIN_MM, _GROWN_MM = 6.0, 12.0


def sample_top(ct: sitk.Image) -> tuple[Grid, NDArray[np.float32]]:
    """The top of the scan in HU on an upright lattice, averaged before it is sampled.

    Args:
        ct: CT in HU, any orientation and voxel size.

    Returns:
        The lattice, whose top face is the scan's, and HU (z, y, x) on it; air outside the scan.
    """
    low, high = bounds(ct)
    low = np.array([low[0], low[1], max(low[2], high[2] - SEARCH_MM)])
    size = np.maximum(np.floor((high - low) / LATTICE_MM), 1).astype(int).tolist()
    grid = Grid.centred((low + high) / 2, size, [LATTICE_MM] * 3)
    steps = zip(ct.GetSpacing(), ct.GetSize(), strict=True)
    averaged = sitk.BinShrink(ct, [max(1, min(int(LATTICE_MM / step), count)) for step, count in steps])
    upright = np.eye(3).ravel().tolist()
    sampled = sitk.Resample(
        averaged, grid.size, sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, upright, AIR_HU
    )
    return grid, sitk.GetArrayFromImage(sampled)


def body_outline(hu: NDArray[np.float32], seed: Mask) -> Mask:
    """The body around `seed`, its cavities filled slice by slice: no couch, head rest or loose arm.

    Args:
        hu: HU on the lattice (z, y, x).
        seed: What certainly belongs to the body, (z, y, x).
    """
    tissue = (hu > BODY_HU) | seed
    body = connected(opened(tissue, _THIN_MM) | seed, seed)
    body = ndimage.binary_dilation(body, ball(LATTICE_MM), round(_GROWN_MM / LATTICE_MM), mask=tissue)
    return fill_slices(body)


def connected(mask: Mask, seed: Mask) -> Mask:
    """The 6-connected components of `mask` that hold a voxel of `seed`."""
    components, count = ndimage.label(mask)
    kept = np.zeros(count + 1, bool)
    kept[np.unique(components[seed])] = True
    kept[0] = False
    return kept[components]


def fill_slices(mask: Mask) -> Mask:
    """`mask` (z, y, x) with the holes of every axial slice filled."""
    return np.stack([ndimage.binary_fill_holes(axial) for axial in mask])


def opened(mask: Mask, radius: float) -> Mask:
    """`mask` (z, y, x) without what is too thin for a ball of `radius` mm; the scan's faces are not thin."""
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    pad = int(np.ceil(radius / LATTICE_MM)) + 1
    box = tuple(slice(max(side.start - pad, 0), side.stop + pad) for side in box)
    result[box] = reach(~reach(~mask[box], radius), radius) & mask[box]
    return result


def reach(mask: Mask, distance: float) -> Mask:
    """All voxels of the lattice within `distance` mm of `mask`."""
    if not mask.any():
        return np.zeros_like(mask)
    return ndimage.distance_transform_edt(~mask, sampling=LATTICE_MM) <= distance


def ball(radius: float) -> Mask:
    """A structuring element of `radius` mm on the lattice."""
    steps = np.arange(-round(radius / LATTICE_MM), round(radius / LATTICE_MM) + 1) * LATTICE_MM
    z, y, x = np.meshgrid(steps, steps, steps, indexing="ij")
    return z * z + y * y + x * x <= radius * radius
