"""What a stage's volumes are cut from: the study itself, or the authors' windowed head crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.card import Sampling
from hnseg.data.resample import AIR_HU, NO_SUV, label_to_grid, to_grid
from hnseg.imaging.grid import Grid, top_of_scan_grid

MODALITIES = ("ct", "pet")
# The authors' window on the PET that min-max has brought to [0, 1]: level 2.5, width 5.
_PET_WINDOW = (0.0, 5.0)


def sample_images(
    sampling: Sampling,
    ct: sitk.Image,
    pet: sitk.Image,
    grid: Grid,
    *,
    modalities: Sequence[str] = MODALITIES,
    antialias: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """CT and PET on a stage's grid.

    Args:
        sampling: What they are cut from.
        ct: CT, HU.
        pet: PET, SUV.
        grid: The stage's grid on this case.
        modalities: Those wanted: the head stage sees CT alone, and sampling costs seconds.
        antialias: As for `hnseg.data.resample.to_grid`.

    Returns:
        `ct` and `pet`, as wanted, (z, y, x) float32. From the study, HU are rounded to whole numbers: the
        cache keeps them so, and what was learnt from is what is shown at inference.
    """
    images, outside = {"ct": ct, "pet": pet}, _outside(sampling)
    if sampling.source == "head_crop":
        crop = _head_grid(sampling, ct)
        units = _head_crop(sampling, ct, pet, crop, modalities)
        images = {name: crop.image(unit) for name, unit in units.items()}
    sampled = {
        name: to_grid(images[name], grid, fill=outside[name], antialias=antialias) for name in modalities
    }
    if sampling.source == "study" and "ct" in sampled:
        sampled["ct"] = np.clip(np.rint(sampled["ct"]), -32768, 32767)
    return sampled


def _outside(sampling: Sampling) -> dict[str, float]:
    """What lies outside the source, by modality."""
    authors = sampling.outside == "minus_one"
    if sampling.source == "study":
        return {"ct": -1.0, "pet": -1.0} if authors else {"ct": AIR_HU, "pet": NO_SUV}
    return {"ct": -1.0 if authors else 0.0, "pet": 0.0}


def sample_label(sampling: Sampling, label: sitk.Image, ct: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
    """A label image on a stage's grid, sampled as often as the images are, by nearest neighbour."""
    if sampling.source == "study":
        return label_to_grid(label, grid)
    crop = _head_grid(sampling, ct)
    return label_to_grid(crop.image(label_to_grid(label, crop)), grid)


def _head_grid(sampling: Sampling, ct: sitk.Image) -> Grid:
    return top_of_scan_grid(ct, sampling.head_size, sampling.head_spacing, lateral="corner")


def _head_crop(
    sampling: Sampling, ct: sitk.Image, pet: sitk.Image, crop: Grid, modalities: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    units = sample_images(Sampling("study", sampling.outside), ct, pet, crop, modalities=modalities)
    if "ct" in units:
        units["ct"] = _unit(units["ct"], sampling.ct_window)
    if "pet" in units:
        low, high = units["pet"].min(), units["pet"].max()
        units["pet"] = _unit((units["pet"] - low) / max(float(high - low), 1e-8), _PET_WINDOW)
    return units


def _unit(array: NDArray[np.float32], window: tuple[float, float]) -> NDArray[np.float32]:
    low, high = window
    return ((np.clip(array, low, high) - low) / (high - low)).astype(np.float32)
