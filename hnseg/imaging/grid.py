"""Grids in patient space and the paper's rules for them.

A grid is an axis-aligned box in LPS millimetres (x to the left, y to the back, z to the head), whatever the
orientation of the image it is cut from. Points, sizes and spacings are (x, y, z); arrays are (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hnseg.imaging.masks import Point, index_box_bounds, mask_bounds

# Air is -1000 HU and skin about -100: halfway between, so that partial volume does not move the outline.
BODY_HU = -400.0
# What lies halfway between two corners of voxels goes to one of them, however the image is stored.
_NUDGE_MM = 1e-6


@dataclass(frozen=True)
class Grid:
    """An axis-aligned voxel grid in LPS patient space, everything (x, y, z)."""

    size: tuple[int, int, int]  # voxels
    spacing: tuple[float, float, float]  # mm
    origin: tuple[float, float, float]  # centre of the first voxel, mm

    @classmethod
    def centred(cls, center: Sequence[float] | Point, size: Sequence[int], spacing: Sequence[float]) -> Grid:
        """Places a grid of `size` voxels so that its middle is at `center` (mm)."""
        origin = np.asarray(center) - (np.asarray(size) - 1) / 2 * np.asarray(spacing)
        return cls(_ints(size), _floats(spacing), _floats(origin))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Grid:
        return cls(_ints(fields["size"]), _floats(fields["spacing"]), _floats(fields["origin"]))

    def to_dict(self) -> dict[str, Any]:
        """The grid as plain lists, for JSON and YAML."""
        return {key: list(value) for key, value in asdict(self).items()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an array on this grid, (z, y, x)."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def extent(self) -> Point:
        """Edge lengths of the box in mm, (x, y, z)."""
        return np.asarray(self.size) * np.asarray(self.spacing)

    @property
    def center(self) -> Point:
        """Middle of the box in mm, (x, y, z)."""
        return np.asarray(self.origin) + (np.asarray(self.size) - 1) / 2 * np.asarray(self.spacing)

    @property
    def corners(self) -> NDArray[np.float64]:
        """The eight outer corners of the box in mm, (8, 3)."""
        half = self.extent / 2
        return np.array([self.center + half * sign for sign in product((-1, 1), repeat=3)])

    def padded(self, margin: Sequence[int]) -> Grid:
        """The same lattice with `margin` more voxels on both sides, (x, y, z)."""
        size = np.asarray(self.size) + 2 * np.asarray(margin)
        origin = np.asarray(self.origin) - np.asarray(margin) * np.asarray(self.spacing)
        return Grid(_ints(size), self.spacing, _floats(origin))

    def image(self, array: NDArray[Any]) -> sitk.Image:
        """Puts an array (z, y, x) into patient space."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        return image


def sample(
    image: sitk.Image, grid: Grid, interpolator: int = sitk.sitkNearestNeighbor, fill: float = 0.0
) -> NDArray[Any]:
    """The image's values (z, y, x) on a grid by an interpolator of SimpleITK's, `fill` outside it."""
    identity = np.eye(3).ravel().tolist()
    return sitk.GetArrayFromImage(
        sitk.Resample(
            image, grid.size, sitk.Transform(), interpolator, grid.origin, grid.spacing, identity, fill
        )
    )


def top_of_scan_grid(
    ct: sitk.Image,
    size: Sequence[int],
    spacing: Sequence[float],
    lateral: Literal["body", "corner"] = "body",
) -> Grid:
    """A grid below the top of the scan, as the localiser's (paper section 2.3).

    In x and y it is centred on the `body`, or starts at the image's `corner` as in the authors' release.
    """
    extent = np.asarray(size) * np.asarray(spacing)
    low, high = bounds(ct)
    center = low + extent / 2 if lateral == "corner" else body_center(ct, depth=float(extent[2]))
    center[2] = high[2] - extent[2] / 2
    return Grid.centred(center, size, spacing)


def coarse_grid(head: sitk.Image, size: Sequence[int], spacing: Sequence[float], top: float = 0.7) -> Grid:
    """The coarse ROI below a head mask's largest component.

    Centred in x and y on the component's bounding box; in z its top face stands `top` of the way
    up the box and it reaches down from there (70 % and 288 mm in the authors' release).
    """
    low, high = mask_bounds(head)
    extent = np.asarray(size) * np.asarray(spacing)
    center = (low + high) / 2
    center[2] = low[2] + top * (high[2] - low[2]) - extent[2] / 2
    return Grid.centred(center, size, spacing)


def nearest_corner(image: sitk.Image, point: Point) -> Point:
    """The corner of voxels of an image's lattice that is nearest to a point in mm.

    Halfway between two corners it is the further along x, y and z, whatever the image's orientation.
    """
    index = np.floor(image.TransformPhysicalPointToContinuousIndex((point + _NUDGE_MM).tolist())) + 0.5
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))


def bounds(image: sitk.Image) -> tuple[Point, Point]:
    """Lowest and highest corner in mm of the axis-aligned box that holds the whole image."""
    return index_box_bounds(image, np.full(3, -0.5), np.asarray(image.GetSize()) - 0.5)


def body_center(ct: sitk.Image, depth: float) -> Point:
    """Middle of the body's box in the top `depth` mm of the scan, in mm; the scan's middle if all is air.

    Found on a lattice of about 8 mm, opened once so that a table or head rest does not count.
    """
    low, high = bounds(ct)
    low = low.copy()
    low[2] = max(low[2], high[2] - depth)
    spacing = (8.0, 8.0, 8.0)
    size = np.maximum(np.ceil((high - low) / 8.0), 1).astype(int)
    lattice = Grid.centred((low + high) / 2, _ints(size), spacing)
    body = ndimage.binary_opening(sample(ct, lattice, fill=-1024.0) > BODY_HU)
    if not body.any():
        return (low + high) / 2
    first, last = mask_bounds(lattice.image(body.astype(np.uint8)))
    return (first + last) / 2


def _ints(values: Sequence[int] | NDArray[Any]) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)
    return x, y, z


def _floats(values: Sequence[float] | NDArray[Any]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
