"""What makes the images of a case unusable, or doubtful."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk

from hnseg.imaging.images import same_grid

# Air is near -1000 HU and bone above 200 HU, in every head-and-neck scan.
HU_AIR, HU_BONE = -200.0, 200.0
# SUV is near 1 in the body's mean, by definition, and some times that in a scan of the brain alone; Bq/ml
# are 1,400 to 5,000 times the SUV, stored integers mostly 100 or 1,000 times. The median does not see
# bladders, spilt tracer, or noise that is mostly air.
SUV_BODY_LIMIT = 20.0
# The median was 0.4 to 0.9 in 26 scans of trunk, limbs and neck; kBq/ml are some 2 to 10 times the SUV.
SUV_BODY_USUAL = 2.5
# SUV reaches some tens in the brain or bladder, some hundreds in the few voxels of an injection site.
SUV_LIMIT = 200.0
# No scan stays below: a factor was applied to what was SUV already, or a wrong one.
SUV_LEAST = 0.1
SUV_REMEDY = (
    "give what makes SUV of it as pet_factor in a CSV case list, or weight, dose and times in CASE__PT.json"
)
MIN_OVERLAP = 0.5  # of the body that the CT shows: air around it needs no PET
MIN_EXTENT_MM, MAX_EXTENT_MM = 60.0, 5000.0
_LATTICE = 40  # points a side


@dataclass(frozen=True)
class Issue:
    """One thing wrong with a case: an "error" makes it unusable, a "warning" calls for a look."""

    level: Literal["error", "warning"]
    text: str


def check_case(ct: sitk.Image, pet: sitk.Image, label: sitk.Image | None = None) -> list[Issue]:
    """Judge images that `hnseg.imaging.images` has read.

    Args:
        ct: CT, HU.
        pet: PET, SUV, on a grid of its own.
        label: Label map 0/1/2 on the CT's grid, where there is one.

    Returns:
        The issues, errors first; an empty list for a case without fault.
    """
    issues = [*_check_intensities(ct, pet), *_check_overlap(ct, pet), *_check_extent(ct, pet)]
    if label is not None:
        issues += _check_label(ct, label)
    return sorted(issues, key=lambda issue: issue.level)


def overlap(ct: sitk.Image, pet: sitk.Image) -> float:
    """Fraction of the CT's volume that lies in the PET's field of view, by a lattice of 40³ points."""
    return float(_lattice(ct, pet)[2].mean())


def body_median(ct: sitk.Image, pet: sitk.Image) -> float:
    """Median of the PET's positive values where the CT shows body; of all of them where it shows none."""
    ct_index, pet_index, inside = _lattice(ct, pet)
    uptake = sitk.GetArrayViewFromImage(pet)
    values = uptake[tuple(pet_index[inside & _is_body(ct, ct_index)].T[::-1])]
    positive = values[values > 0] if (values > 0).any() else uptake[uptake > 0]
    return float(np.median(positive)) if positive.size else 0.0


def z_range(image: sitk.Image) -> tuple[float, float]:
    """Lowest and highest patient coordinate z (towards the head) of the image's field of view, mm."""
    z = _corners(image)[:, 2]
    return float(z.min()), float(z.max())


def _corners(image: sitk.Image) -> np.ndarray:
    """The outer corners of the field of view, (8, 3), mm."""
    corners = np.array(np.meshgrid(*((-0.5, s - 0.5) for s in image.GetSize()))).reshape(3, -1).T
    return np.asarray(corners @ _affine(image).T + image.GetOrigin())


def _lattice(ct: sitk.Image, pet: sitk.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40³ points over the CT: nearest index (x, y, z) in it and in the PET, and whether the PET holds it."""
    size = np.array(ct.GetSize())
    steps = (np.arange(_LATTICE) + 0.5) / _LATTICE
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    index = lattice * size - 0.5  # voxel i reaches from i - 0.5 to i + 0.5
    points = index @ _affine(ct).T + ct.GetOrigin()
    in_pet = (points - pet.GetOrigin()) @ np.linalg.inv(_affine(pet)).T
    last = np.array(pet.GetSize()) - 1
    inside = ((in_pet >= -0.5) & (in_pet <= last + 0.5)).all(axis=1)
    return np.rint(index).astype(int), np.clip(np.rint(in_pet), 0, last).astype(int), inside


def _is_body(ct: sitk.Image, index: np.ndarray) -> np.ndarray:
    """Which of the CT's voxels (n, 3) are no air."""
    return np.asarray(sitk.GetArrayViewFromImage(ct)[tuple(index.T[::-1])] > HU_AIR)


def _affine(image: sitk.Image) -> np.ndarray:
    """Matrix (3, 3) from index (x, y, z) to millimetres."""
    return np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()


def _check_intensities(ct: sitk.Image, pet: sitk.Image) -> Iterator[Issue]:
    hu, suv = sitk.GetArrayViewFromImage(ct), sitk.GetArrayViewFromImage(pet)
    ct_low, ct_high = float(hu.min()), float(hu.max())
    pet_low, pet_high = float(suv.min()), float(suv.max())
    if ct_low > HU_AIR and pet_low < HU_AIR:
        text = "CT and PET look swapped (the PET holds air in HU, the CT none): exchange the two files"
        yield Issue("error", text)
        return
    if ct_low == ct_high:
        yield Issue("error", f"CT is {ct_low:g} everywhere: export it again")
    elif ct_low > HU_AIR or ct_high < HU_BONE:
        text = f"CT runs from {ct_low:g} to {ct_high:g}, not HU (air to bone)"
        yield Issue("error", f"{text}: apply the DICOM rescale slope and intercept")
    if pet_low == pet_high:
        yield Issue("error", f"PET is {pet_low:g} everywhere: export it again")
    elif pet_low < HU_AIR:
        text = f"PET falls to {pet_low:.3g}, as no SUV does: name a PET, not a CT, or {SUV_REMEDY}"
        yield Issue("error", text)
    else:
        yield from _check_suv(pet_high, body_median(ct, pet))
        if pet_low < -1:
            yield Issue("warning", f"PET falls to {pet_low:.3g}: SUV is not negative, check its rescaling")


def _check_suv(highest: float, typical: float) -> Iterator[Issue]:
    """What the PET's highest value and its median in the body say of its unit."""
    if typical > SUV_BODY_LIMIT:
        text = f"PET is {typical:.3g} in the body: Bq/ml or counts, not SUV (about 1); {SUV_REMEDY}"
        yield Issue("error", text)
    elif highest < SUV_LEAST:
        text = f"PET reaches {highest:.2g} only, less than any SUV; correct its pet_factor or sidecar"
        yield Issue("error", f"{text}, or {SUV_REMEDY}")
    elif typical > SUV_BODY_USUAL:
        text = f"PET is {typical:.3g} in the body, where SUV is about 1: check that it is not kBq/ml"
        yield Issue("warning", text)
    elif highest > SUV_LIMIT:
        text = f"PET reaches {highest:.3g} in places: check for an injection site or artefact"
        yield Issue("warning", text)
    elif highest <= 1:
        text = f"PET reaches {highest:.2g} only: check that it is SUV, not scaled to [0, 1]"
        yield Issue("warning", text)


def _check_overlap(ct: sitk.Image, pet: sitk.Image) -> Iterator[Issue]:
    ct_index, _, inside = _lattice(ct, pet)
    body = _is_body(ct, ct_index)
    covered = float(inside[body].mean() if body.any() else inside.mean())
    if covered == 0:
        text = "CT and PET do not overlap in space: check that both belong to one examination"
        yield Issue("error", text)
    elif covered < MIN_OVERLAP:
        text = f"PET covers {covered:.0%} of the body only: lesions outside it are seen on CT alone"
        yield Issue("warning", text)


def _check_extent(ct: sitk.Image, pet: sitk.Image) -> Iterator[Issue]:
    low, high = z_range(ct)
    spacing = ct.GetSpacing()
    if min(spacing) < 0.1 or max(spacing) > 10:
        steps = " x ".join(f"{step:.3g}" for step in spacing)
        text = f"CT spacing {steps} mm: check the header's unit, and that no slice is missing"
        yield Issue("warning", text)
    elif high - low < MIN_EXTENT_MM:
        text = f"CT covers {high - low:.0f} mm in z only: check that slices are not missing"
        yield Issue("warning", text)
    for name, image in (("CT", ct), ("PET", pet)):
        sides = np.multiply(image.GetSize(), image.GetSpacing())
        if sides.max() > MAX_EXTENT_MM:
            metres = " x ".join(f"{side / 1000:.3g}" for side in sides)
            text = f"{name} measures {metres} m, more than any body: its header's spacing is not in mm"
            yield Issue("error", text)


def _check_label(ct: sitk.Image, label: sitk.Image) -> Iterator[Issue]:
    if not same_grid(ct, label):
        difference = _difference(ct, label)
        text = f"label is not on the CT's grid ({difference}): resample it, nearest neighbour"
        yield Issue("error", text)
    elif not sitk.GetArrayViewFromImage(label).any():
        yield Issue("warning", "label is empty: check that the patient has neither GTVp nor GTVn")


def _difference(ct: sitk.Image, label: sitk.Image) -> str:
    """The label's size where it is another, else how far each part of its geometry moves its corners."""
    if label.GetSize() != ct.GetSize():
        sizes = ["x".join(map(str, image.GetSize())) for image in (label, ct)]
        return f"its size is {sizes[0]} voxels, the CT's {sizes[1]}"
    moved = {}
    for part in ("Origin", "Spacing", "Direction"):
        other = sitk.Image(ct)  # a copy of the header: voxels are copied when they are written
        getattr(other, f"Set{part}")(getattr(label, f"Get{part}")())
        moved[part.lower()] = float(np.linalg.norm(_corners(other) - _corners(ct), axis=1).max())
    # What is less than a tenth of the largest is rounding, or no matter.
    named = [f"{mm:.3g} mm by its {part}" for part, mm in moved.items() if mm >= max(moved.values()) / 10]
    return f"its corners are off, {' and '.join(named)}"
