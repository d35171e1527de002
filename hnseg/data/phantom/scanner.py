"""The centres and what their scanners make of a body: CT in HU, PET in SUV, masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hnseg.data.phantom.anatomy import AIR, Part, Patient, rotation
from hnseg.data.phantom.lesions import Lesion
from hnseg.data.phantom.solids import ScanGrid, Solid, Vector, coverage, sample, vector

Size = Literal["small", "full"]
Pair = tuple[float, float]

UPRIGHT = np.eye(3)
BOTTOM_UP = np.diag([1.0, 1.0, -1.0])  # slices stored from the top down
RAS = np.diag([-1.0, -1.0, 1.0])
SAGITTAL = vector([[0, 0, 1], [1, 0, 0], [0, -1, 0]])  # columns: index x runs along y, y along -z, z along x
OBLIQUE = rotation(vector([0.06, 0.03, -0.04]))


@dataclass(frozen=True)
class Centre:
    """A centre's protocol.

    Attributes:
        share: of HECKTOR 2025's 680 training cases.
        below: how far the CT reaches below the vertex, mm.
        spacing: CT in plane and between slices, mm, at full size.
        pet_spacing: in plane and between slices, mm.
        pet_width: in-plane field of view, mm.
        shift: of the patient to the left, mm.
        offset: of all CT numbers, HU.
        ct_noise: standard deviation in soft tissue, HU.
        pet_noise: standard deviation at SUV 1; it grows with the square root of SUV.
        pet_fwhm: of the PET's point spread, mm.
        direction: of the CT's index axes.
        pet_direction: of the PET's.
    """

    name: str
    share: int
    below: float
    spacing: Pair
    pet_spacing: Pair
    pet_width: float
    shift: float
    offset: float
    ct_noise: float
    pet_noise: float
    pet_fwhm: float
    direction: Vector
    pet_direction: Vector


CENTRES = (
    Centre("MDA", 396, 460, (0.98, 2.5), (4.1, 3.3), 500, 0, 0, 28, 0.12, 6.5, UPRIGHT, UPRIGHT),
    Centre("CHUS", 72, 950, (1.17, 3.0), (4.0, 4.0), 570, 8, 5, 26, 0.10, 7.0, BOTTOM_UP, BOTTOM_UP),
    Centre("CHUP", 72, 345, (0.98, 1.5), (3.0, 3.0), 320, -6, -7, 30, 0.16, 5.5, RAS, RAS),
    Centre("CHUM", 56, 460, (0.98, 2.0), (4.0, 4.0), 420, 14, 4, 28, 0.12, 6.0, OBLIQUE, UPRIGHT),
    Centre("HGJ", 55, 950, (0.98, 3.0), (3.65, 3.27), 600, -18, -3, 27, 0.11, 7.5, UPRIGHT, BOTTOM_UP),
    Centre("HMR", 18, 335, (0.98, 1.5), (4.0, 5.0), 280, 25, 8, 30, 0.14, 7.0, SAGITTAL, UPRIGHT),
    Centre("USZ", 11, 950, (0.98, 3.0), (5.47, 3.27), 800, 0, -5, 26, 0.13, 8.0, UPRIGHT, RAS),
)
NAMES = tuple(centre.name for centre in CENTRES)


def draw_centre(rng: np.random.Generator, name: str | None = None) -> Centre:
    """The centre of that name, or one of the seven in HECKTOR's proportions."""
    shares = vector([centre.share for centre in CENTRES])
    drawn = CENTRES[int(rng.choice(len(CENTRES), p=shares / shares.sum()))]
    return CENTRES[NAMES.index(name)] if name else drawn


def draw_grids(
    rng: np.random.Generator, centre: Centre, patient: Patient, size: Size
) -> tuple[ScanGrid, ScanGrid]:
    """The CT's and the PET's grid for one scan.

    Both are centred on the couch, not on the patient. Small scans are coarser and stop at the chest: about
    1.5 MB a case instead of 100.
    """
    in_plane, between = centre.spacing
    below, width, depth = centre.below * patient.scale[2], 512 * in_plane, 512 * in_plane
    pet_width, pet_spacing = centre.pet_width, vector(centre.pet_spacing)
    fineness = rng.uniform(0.96, 1.0)  # the slices of no two scans lie alike
    if size == "small":
        in_plane, between = (2.4 + in_plane) * fineness, 2.4 / fineness + 0.7 * between
        below, width, depth = min(below, 580.0), 320.0, 270.0
        pet_width, pet_spacing = max(0.7 * pet_width, 256.0), np.minimum(1.25 * pet_spacing, 5.5)
    spacing = [in_plane, in_plane, between * fineness]
    top = patient.offset[2] + rng.uniform(4, 22)
    bottom = patient.offset[2] - below
    x, y = patient.offset[0] - centre.shift - rng.normal(0, 3), patient.offset[1] + 20
    grid = ScanGrid.covering(
        [x - width / 2, y - depth / 2, bottom], [x + width / 2, y + depth / 2, top], spacing, centre.direction
    )
    pet_low = [x - pet_width / 2, y - pet_width / 2, bottom + rng.uniform(-20, 25)]
    pet_high = [x + pet_width / 2, y + pet_width / 2, top + rng.uniform(-12, 15)]
    return grid, ScanGrid.covering(pet_low, pet_high, pet_spacing[[0, 0, 1]], centre.pet_direction)


SUV_STEP = 1 / 64  # scanners store integers; so the file compresses, too
FWHM = 2 * np.sqrt(2 * np.log(2))  # in standard deviations


def paint(grid: ScanGrid, solids: Iterable[tuple[Solid, float]], background: float) -> NDArray[np.float32]:
    """Solids with a value each (z, y, x), later over earlier ones, with partial volume at their edges."""
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
    """The body without its limbs above the patient height `chin` (mm), uint8, (z, y, x)."""
    mask = np.zeros(grid.shape, np.uint8)
    for part in body:
        if part.name != "limb":
            box, level = sample(part.solid, grid)
            mask[box] |= level < 1
    return mask * (grid.heights() >= chin)
