"""Where the voxels of a mask lie, in millimetres and in the array."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

Point = NDArray[np.float64]
Box = tuple[slice, slice, slice]  # index slices (z, y, x)


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
    """Index slices (z, y, x) around all non-zero voxels, None if there is none.

    Of a whole-body label nearly all is background, which is passed over many times faster than it is
    searched.
    """
    box: list[slice] = []
    for axis in range(3):  # each within what the former have left
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
    """A connected component of a mask.

    Args:
        ml: Its volume.
        box: Index slices (z, y, x) around it.
    """

    ml: float
    box: Box


def largest_component(mask: sitk.Image) -> Component | None:
    """The largest 26-connected component of the voxels above zero, or None if there is none."""
    array = sitk.GetArrayViewFromImage(mask)
    around = foreground_box(array)
    if around is None:
        return None
    components, _ = ndimage.label(array[around] != 0, np.ones((3, 3, 3)))
    voxels = np.bincount(components.ravel())[1:]
    largest = int(voxels.argmax())
    ml = float(voxels[largest] * np.prod(mask.GetSpacing()) / 1000)
    inside = ndimage.find_objects(components)[largest]
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(around, inside, strict=True))
    return Component(ml, (z, y, x))


def index_box_bounds(image: sitk.Image, first: Point, last: Point) -> tuple[Point, Point]:
    """Lowest and highest corner in mm of what a box of continuous indices (i, j, k) reaches over."""
    corners = [
        image.TransformContinuousIndexToPhysicalPoint([float(c) for c in corner])
        for corner in product(*zip(first, last, strict=True))
    ]
    return np.min(corners, axis=0), np.max(corners, axis=0)
