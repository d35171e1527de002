"""Analytic solids in patient space and the voxel grids they are sampled on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Box = tuple[slice, slice, slice]


def vector(values: ArrayLike) -> Vector:
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class ScanGrid:
    """A voxel grid in patient space: sizes, spacing and origin in (x, y, z), LPS, mm.

    `direction` holds the unit vectors of the index axes in its columns, as SimpleITK does.
    """

    size: tuple[int, int, int]
    spacing: Vector
    origin: Vector
    direction: Vector

    @classmethod
    def covering(cls, low: ArrayLike, high: ArrayLike, spacing: ArrayLike, direction: Vector) -> ScanGrid:
        """The grid centred on the box from `low` to `high` (mm), with `spacing` along patient x, y, z.

        Index axes may be permuted, flipped and oblique: each takes the spacing and extent of the patient
        axis that it runs along most.
        """
        low, high = vector(low), vector(high)
        axes = np.abs(direction).argmax(axis=0)
        steps = vector(spacing)[axes]
        size = np.maximum(np.ceil((high - low)[axes] / steps).astype(int), 1)
        origin = (low + high) / 2 - direction @ (steps * (size - 1) / 2)
        return cls((int(size[0]), int(size[1]), int(size[2])), steps, origin, direction)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (z, y, x)."""
        return self.size[::-1]

    @property
    def affine(self) -> Vector:
        """The 3 × 3 matrix that takes an index (x, y, z) to mm relative to the origin."""
        return self.direction * self.spacing

    def heights(self) -> NDArray[np.float32]:
        """Patient z (mm) of every voxel, broadcastable to (z, y, x)."""
        return _linear(self.affine[2], float(self.origin[2]), tuple(slice(0, n) for n in self.shape))

    def image(self, array: NDArray) -> sitk.Image:
        """An array (z, y, x) on this grid as a SimpleITK image."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing.tolist())
        image.SetOrigin(self.origin.tolist())
        image.SetDirection(self.direction.ravel().tolist())
        return image


@dataclass(frozen=True)
class Solid:
    """An ellipsoid, or with `flatness` > 0 an elliptic cylinder along its own z with rounded rims.

    The inside is ((x/rx)² + (y/ry)²)^p + (z/rz)^2p < 1 with p = 2^flatness, in the solid's own axes, which
    are the columns of `axes` in patient space. Centre and radii in mm.
    """

    centre: Vector
    radii: Vector
    flatness: int = 0
    axes: Vector = field(default_factory=lambda: np.eye(3))

    def level(self, x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        """0 at the centre, 1 on the surface; arguments in units of the radii, broadcastable."""
        across, along = x * x + y * y, z * z
        for _ in range(self.flatness):
            across, along = across * across, along * along
        total = across + along
        for _ in range(self.flatness + 1):
            np.sqrt(total, out=total)
        return total

    def reach(self) -> float:
        """How far the surface may lie from the centre, in units of the radii."""
        return 1.0

    def turned(self, rotation: Vector, pivot: Vector) -> Self:
        return replace(self, centre=pivot + rotation @ (self.centre - pivot), axes=rotation @ self.axes)

    def grown(self, factor: float = 1.0, margin: float = 0.0) -> Self:
        """The same shape with its radii multiplied by `factor`, then enlarged by `margin` mm."""
        return replace(self, radii=self.radii * factor + margin)


@dataclass(frozen=True)
class Blob(Solid):
    """An ellipsoid whose radius varies smoothly with the direction: r(u) = exp(Σ a cos(w·u + φ)).

    `waves` has a row (a, wx, wy, wz, φ) per term.
    """

    waves: Vector = field(default_factory=lambda: np.empty((0, 5)))

    def level(self, x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        distance = np.sqrt(x * x + y * y + z * z)
        inverse = 1 / np.maximum(distance, 1e-6)
        x, y, z = x * inverse, y * inverse, z * inverse
        return distance * np.exp(-self.swell(x, y, z))

    def swell(self, x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        """The exponent Σ a cos(w·u + φ) for unit vectors u."""
        total = np.zeros_like(x)
        for a, wx, wy, wz, phase in self.waves.astype(x.dtype):
            total += a * np.cos(wx * x + wy * y + wz * z + phase)
        return total

    def reach(self) -> float:
        return float(np.exp(np.abs(self.waves[:, 0]).sum()))

    def volume(self) -> float:
        """Volume in mm³, from ∫ r³ over a Fibonacci sphere of directions."""
        steps = np.arange(2000)
        z = 1 - (2 * steps + 1) / len(steps)
        turn = np.pi * (1 + 5**0.5) * steps
        ring = np.sqrt(1 - z * z)
        cubes = np.exp(3 * self.swell(ring * np.cos(turn), ring * np.sin(turn), z))
        return float(4 / 3 * np.pi * np.prod(self.radii) * cubes.mean())


def rod(start: Sequence[float], end: Sequence[float], radius: float) -> Solid:
    """A round rod between two points (mm), its ends `radius` / 2 beyond them."""
    a, b = vector(start), vector(end)
    length = float(np.linalg.norm(b - a))
    along = (b - a) / length
    across = np.cross(along, np.eye(3)[np.abs(along).argmin()])
    across /= np.linalg.norm(across)
    axes = np.column_stack([across, np.cross(along, across), along])
    return Solid((a + b) / 2, vector([radius, radius, (length + radius) / 2]), flatness=2, axes=axes)


def sample(solid: Solid, grid: ScanGrid) -> tuple[Box, NDArray[np.float32]]:
    """The solid's level within its bounding box on the grid.

    Returns:
        The box as slices (z, y, x), possibly empty, and the level there (float32): below 1 inside.
    """
    frame, inverse = solid.axes, np.linalg.inv(grid.affine)
    middle, turned = inverse @ (solid.centre - grid.origin), inverse @ frame
    # The box of an ellipsoid, or of the box around a cylinder.
    half = np.abs(turned) @ solid.radii if solid.flatness else np.linalg.norm(turned * solid.radii, axis=1)
    half = half * solid.reach() + 1
    low = np.clip(np.ceil(middle - half), 0, grid.size).astype(int)
    high = np.clip(np.floor(middle + half) + 1, low, grid.size).astype(int)
    box = (slice(low[2], high[2]), slice(low[1], high[1]), slice(low[0], high[0]))
    rows = (frame / solid.radii).T @ grid.affine
    start = (frame / solid.radii).T @ (grid.origin - solid.centre)
    return box, solid.level(*(_linear(rows[axis], float(start[axis]), box) for axis in range(3)))


def coverage(solid: Solid, grid: ScanGrid) -> tuple[Box, NDArray[np.float32]]:
    """How much of each voxel the solid fills, 0 to 1, with an edge about one voxel wide."""
    box, level = sample(solid, grid)
    width = float(np.prod(grid.spacing) ** (1 / 3) / solid.radii.min())
    return box, np.clip((1 - level) / np.float32(width) + np.float32(0.5), 0, 1)


def _linear(row: Vector, start: float, box: Sequence[slice]) -> NDArray[np.float32]:
    """row · index + start over a box (z, y, x); axes with no weight keep length 1."""
    total = np.full((1, 1, 1), start, np.float32)
    for weight, extent, shape in zip(row, box[::-1], ((1, 1, -1), (1, -1, 1), (-1, 1, 1)), strict=True):
        if abs(weight) > 1e-9:
            steps = np.arange(extent.start, extent.stop, dtype=np.float64)
            total = total + (weight * steps).astype(np.float32).reshape(shape)
    return total
