"""From probabilities to labels by a recipe's rules: each voxel's vote, and which components stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.card import Decision
from hnseg.data.resample import index_box
from hnseg.imaging.images import from_array, part_of, to_array
from hnseg.imaging.masks import Box, positions
from hnseg.imaging.suv import PEAK_RADIUS_MM, sphere_means
from hnseg.metrics.lesions import label_lesions


def decide(foreground: NDArray[np.float32], rules: Decision, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Chooses a label for every voxel.

    `rule=half` wants at least 0.5, and takes the larger where several classes pass (paper); `rule=argmax`
    wants more than the background. Between equal classes the first wins. Under `argmax`, a class that does
    not reach its threshold is out of the vote of that voxel: the next class has it if that is above the
    background, the background otherwise.

    Args:
        foreground: Class probabilities without background, (K, z, y, x); the background has the rest.
        rules: Its `rule` and `thresholds`.
        classes: Names of the K classes.

    Returns:
        Labels (z, y, x): 0 background, 1 the first class, and so on.
    """
    background = 1 - foreground.sum(axis=0)
    if rules.rule == "argmax":
        thresholds: Any = rules.thresholds
        bars = np.array([thresholds.get(name, 0.0) for name in classes], np.float32).reshape(-1, 1, 1, 1)
        foreground = np.where(foreground >= bars, foreground, np.float32(0))
    winner = foreground.argmax(axis=0)
    strongest = np.take_along_axis(foreground, winner[None], axis=0)[0]
    passed = strongest >= 0.5 if rules.rule == "half" else strongest > background
    return np.where(passed, winner + 1, 0).astype(np.uint8)


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
        threshold = least_voxels(floor, voxel_ml)
        if threshold > 1:
            component = (labels == label).astype(np.uint8)
            kept[(component > 0) & (cc3d.dust(component, threshold=threshold, connectivity=26) == 0)] = 0
    return kept


def least_voxels(floor: float, voxel_ml: float) -> int:
    """How many voxels make up at least a volume; both in ml."""
    return int(np.ceil(floor / voxel_ml - 1e-6))


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
    for box, component in components(labels, label):
        suv = uptake(component, pet)
        if suv is not None and suv.peak < min_suv:
            kept[box][sitk.GetArrayViewFromImage(component) > 0] = 0
    return from_array(kept, labels)


def components(labels: sitk.Image, label: int) -> Iterator[tuple[Box, sitk.Image]]:
    """A class's 26-connected components, one after the other.

    Yields:
        The box (z, y, x) around a component, and that part of the image: 1 inside the component, 0 outside.
    """
    numbered, count = label_lesions(to_array(labels) == label)
    boxes = cc3d.statistics(numbered)["bounding_boxes"]
    for number in range(1, count + 1):
        box = boxes[number]
        inside = (numbered[box] == number).astype(np.uint8)
        yield box, part_of(labels, inside, [side.start for side in reversed(box)])


class Uptake(NamedTuple):
    """SUV of a component: the highest, the mean, and the peak as `uptake` defines it."""

    maximum: float
    mean: float
    peak: float


def uptake(component: sitk.Image, pet: sitk.Image) -> Uptake | None:
    """SUVmax, SUVmean and SUVpeak of a component, on the PET's own grid.

    They are taken over the PET's voxels whose centres lie in the component (the nearest to its middle where
    it is too small to hold any). SUVpeak is the highest mean in a sphere of 1 ml (radius 6.2 mm) with its
    centre at one of them; a sphere's mean is that of the PET voxels whose centres it holds.

    Args:
        component: Non-zero inside, any grid.
        pet: SUV.

    Returns:
        None where the PET does not reach the component.
    """
    points = positions(component)
    box = index_box(pet, points, margin=int(np.ceil(PEAK_RADIUS_MM / min(pet.GetSpacing()))) + 1)
    if box is None:
        return None
    seen = sitk.GetArrayViewFromImage(pet)[tuple(slice(a, b) for a, b in reversed(box))]
    suv, values = part_of(pet, seen, [a for a, _ in box]), seen.astype(np.float64)
    mean = sphere_means(values, pet.GetSpacing())
    resample = sitk.ResampleImageFilter()
    resample.SetReferenceImage(suv)
    resample.SetInterpolator(sitk.sitkNearestNeighbor)
    resample.SetNumberOfWorkUnits(1)  # to start more takes longer than the few voxels
    inside = sitk.GetArrayFromImage(resample.Execute(component)) > 0
    if not inside.any():
        middle = suv.TransformPhysicalPointToIndex(points.mean(axis=0).tolist())[::-1]
        if not all(0 <= i < n for i, n in zip(middle, mean.shape, strict=True)):
            return None
        inside[middle] = True
    return Uptake(float(values[inside].max()), float(values[inside].mean()), float(mean[inside].max()))
