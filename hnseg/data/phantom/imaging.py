"""What the scanner makes of a body: CT in HU, PET in SUV, and the true masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hnseg.data.phantom.anatomy import AIR, Part
from hnseg.data.phantom.lesions import Lesion
from hnseg.data.phantom.scanner import Centre
from hnseg.data.phantom.solids import ScanGrid, Solid, coverage, sample

SUV_STEP = 1 / 64  # scanners store integers; so the file compresses, too
FWHM = 2 * np.sqrt(2 * np.log(2))  # in standard deviations


def paint(grid: ScanGrid, solids: Iterable[tuple[Solid, float]], background: float) -> NDArray[np.float32]:
    """Solids with a value each, later ones over earlier ones, with partial volume at their edges.

    Returns:
        Array (z, y, x), float32.
    """
    image = np.full(grid.shape, background, np.float32)
    for solid, value in solids:
        box, share = coverage(solid, grid)
        image[box] += share * (np.float32(value) - image[box])
    return image


def scan_ct(
    grid: ScanGrid, parts: Sequence[Part], centre: Centre, rng: np.random.Generator
) -> NDArray[np.int16]:
    """CT in HU, int16, (z, y, x): grained noise, weaker in air, and the centre's offset."""
    image = paint(grid, ((part.solid, part.hu) for part in parts), AIR)
    # Filtered back-projection takes the low frequencies out of the noise: it averages out over a lesion.
    noise = rng.standard_normal(grid.shape, np.float32)
    noise -= gaussian_filter(noise, 0.8)
    noise *= np.float32(centre.ct_noise / noise.std())
    noise *= np.where(image < -600, np.float32(0.35), np.float32(1))
    image += noise + np.float32(centre.offset)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def scan_pet(
    grid: ScanGrid, parts: Sequence[Part], centre: Centre, rng: np.random.Generator
) -> NDArray[np.float32]:
    """PET in SUV, float32, (z, y, x): blurred by the point spread, its noise growing with the signal."""
    image = paint(grid, ((part.solid, part.suv) for part in parts), 0.0)
    image = gaussian_filter(image, (centre.pet_fwhm / FWHM / grid.spacing)[::-1])
    noise = gaussian_filter(rng.standard_normal(grid.shape, np.float32), 0.6)
    noise *= np.float32(centre.pet_noise / noise.std())
    image += noise * np.sqrt(image)
    return np.rint(np.maximum(image, 0) / SUV_STEP).astype(np.float32) * np.float32(SUV_STEP)


def label_map(grid: ScanGrid, lesions: Sequence[Lesion]) -> NDArray[np.uint8]:
    """GTVp = 1 and GTVn = 2, uint8, (z, y, x); later lesions lie on top."""
    labels = np.zeros(grid.shape, np.uint8)
    for lesion in lesions:
        box, level = sample(lesion.solid, grid)
        labels[box][level < 1] = lesion.label
    return labels


def head_mask(grid: ScanGrid, body: Sequence[Part], chin: float) -> NDArray[np.uint8]:
    """All of the body above the patient height `chin` (mm), uint8, (z, y, x)."""
    mask = np.zeros(grid.shape, np.uint8)
    for part in body:
        box, level = sample(part.solid, grid)
        mask[box] |= level < 1
    return mask * (grid.heights() >= chin)
