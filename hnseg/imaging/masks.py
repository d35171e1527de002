"""Where the voxels of a mask lie, in millimetres and in the array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Point = NDArray[np.float64]
Box = tuple[slice, slice, slice]  # index slices (z, y, x)


def voxel_ml(spacing: Sequence[float]) -> float:
    """Volume in ml of a voxel with these edges in mm."""
    return float(np.prod(spacing)) / 1000


def centroid(label: sitk.Image) -> Point | None:
    """Mean position in mm of all non-zero voxels (GTVp and GTVn together), or None if there is none."""
    points = positions(label)
    return points.mean(axis=0) if len(points) else None


def positions(label: sitk.Image) -> NDArray[np.float64]:
    """Centres of all non-zero voxels in mm, (n, 3)."""
    array = sitk.GetArrayViewFromImage(label)
    box = foreground_box(array)
    if box is None:
        return np.empty((0, 3))
    index = (np.argwhere(array[box]) + [side.start for side in box])[:, ::-1]
    steps = np.asarray(label.GetDirection()).reshape(3, 3) * np.asarray(label.GetSpacing())
    return index @ steps.T + np.asarray(label.GetOrigin())


def foreground_box(array: NDArray[Any]) -> Box | None:
    """Index slices (z, y, x) around all non-zero voxels, None if there is none."""
    box: list[slice] = []
    for axis in range(3):  # each within what the former have left: nearly all of a label is background
        part = array[tuple(box)]
        found = np.flatnonzero(part.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(found):
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return box[0], box[1], box[2]


def mask_bounds(mask: sitk.Image) -> tuple[Point, Point]:
    """Lowest and highest corner in mm of the box around a mask's largest 26-connected component.

    Raises:
        ValueError: The mask is empty.
    """
    component = largest_component(mask)
    if component is None:
        raise ValueError("an empty mask has no bounds")
    first = np.array([s.start for s in component.box][::-1]) - 0.5
    last = np.array([s.stop for s in component.box][::-1]) - 0.5
    return index_box_bounds(mask, first, last)


@dataclass(frozen=True)
class Component:
    """Volume in ml and index slices (z, y, x) around a connected component of a mask."""

    ml: float
    box: Box


def largest_component(mask: sitk.Image) -> Component | None:
    """The largest 26-connected component of all non-zero voxels, or None if there is none."""
    array = sitk.GetArrayViewFromImage(mask)
    around = foreground_box(array)
    if around is None:
        return None
    found = cc3d.statistics(cc3d.connected_components(array[around] != 0, connectivity=26))
    largest = 1 + int(found["voxel_counts"][1:].argmax())  # 0 is the background
    inside = found["bounding_boxes"][largest]
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(around, inside, strict=True))
    return Component(float(found["voxel_counts"][largest]) * voxel_ml(mask.GetSpacing()), (z, y, x))


def index_box_bounds(image: sitk.Image, first: Point, last: Point) -> tuple[Point, Point]:
    """Lowest and highest corner in mm of what a box of continuous indices (i, j, k) reaches over."""
    corners = [
        image.TransformContinuousIndexToPhysicalPoint([float(c) for c in corner])
        for corner in product(*zip(first, last, strict=True))
    ]
    return np.min(corners, axis=0), np.max(corners, axis=0)
