"""Which components of a mask stay: by their volume, nodes also by their uptake."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hnseg.data.resample import index_box
from hnseg.geometry import positions
from hnseg.images import from_array
from hnseg.metrics.matching import label_lesions

# A sphere of 1 ml.
PEAK_RADIUS_MM = 6.2


def remove_small(labels: NDArray[np.uint8], voxel_ml: float, floors: Sequence[float]) -> NDArray[np.uint8]:
    """Drops 26-connected components below a volume, class by class.

    The paper's post-processing; its size is not given (`recipe.decision.min_component_ml`).

    Args:
        labels: (z, y, x).
        voxel_ml: Volume of a voxel in ml.
        floors: Smallest component that stays, ml, for the labels 1, 2, ...
    """
    kept = labels.copy()
    for label, floor in enumerate(floors, start=1):
        threshold = int(np.ceil(floor / voxel_ml - 1e-6))
        if threshold > 1:
            component = (labels == label).astype(np.uint8)
            kept[(component > 0) & (cc3d.dust(component, threshold=threshold, connectivity=26) == 0)] = 0
    return kept


def remove_faint(labels: sitk.Image, pet: sitk.Image, label: int, min_suv: float) -> sitk.Image:
    """Drops a class's 26-connected components whose SUVpeak is below a bound.

    A component that the PET does not show has no SUVpeak, and stays.

    Args:
        labels: uint8, any grid.
        pet: SUV, on a grid of its own.
        label: The class.
        min_suv: The least SUVpeak that stays.
    """
    kept = sitk.GetArrayFromImage(labels)
    components, count = label_lesions(kept == label)
    for number, box in enumerate(ndimage.find_objects(components, count), start=1):
        inside = components[box] == number
        start = [int(s.start) for s in box][::-1]
        here = labels[tuple(slice(a, a + n) for a, n in zip(start, inside.shape[::-1], strict=True))]
        peak = suv_peak(from_array(inside.astype(np.uint8), here), pet)
        if peak is not None and peak < min_suv:
            kept[box][inside] = 0
    return from_array(kept, labels)


def suv_peak(component: sitk.Image, pet: sitk.Image) -> float | None:
    """The highest mean SUV in a sphere of 1 ml (radius 6.2 mm) whose centre lies in a component.

    On the PET's own grid: centres are its voxels that lie in the component (the one nearest to the
    component's middle where it is too small to hold any), and a sphere's mean is that of the PET voxels
    whose centres it holds.

    Args:
        component: Non-zero inside, any grid.
        pet: SUV.

    Returns:
        SUV, or None where the PET does not reach the component.
    """
    points = positions(component)
    reach = np.ceil(PEAK_RADIUS_MM / np.asarray(pet.GetSpacing())).astype(int)
    box = index_box(pet, points, margin=int(reach.max()) + 1)
    if box is None:
        return None
    suv = pet[tuple(slice(a, b) for a, b in box)]
    values = sitk.GetArrayFromImage(suv).astype(np.float64)
    ball = _ball(reach, np.asarray(pet.GetSpacing()))
    total = ndimage.convolve(values, ball, mode="constant")
    mean = total / ndimage.convolve(np.ones_like(values), ball, mode="constant")
    held = sitk.GetArrayFromImage(sitk.Resample(component, suv, sitk.Transform(), sitk.sitkNearestNeighbor))
    if held.any():
        return float(mean[held > 0].max())
    middle = suv.TransformPhysicalPointToIndex(points.mean(axis=0).tolist())[::-1]
    if not all(0 <= i < n for i, n in zip(middle, mean.shape, strict=True)):
        return None
    return float(mean[middle])


def _ball(reach: NDArray[np.int_], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the voxels (z, y, x) whose centres lie within the radius of the middle one."""
    x, y, z = (np.arange(-n, n + 1) * mm for n, mm in zip(reach, spacing, strict=True))
    squared = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x**2
    return (squared <= PEAK_RADIUS_MM**2).astype(np.float64)
