"""One scan's head mask from anatomy alone: the body around the skull and under it, down to the chin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hnseg.data.resample import AIR_HU, to_image
from hnseg.imaging.grid import BODY_HU, Grid, bounds, sample
from hnseg.imaging.images import from_array
from hnseg.imaging.masks import mask_bounds

Mask = NDArray[np.bool_]

LATTICE_MM = 3.0  # half the thickness of a skull: coarse enough to be fast, fine enough to keep it closed
SEARCH_MM = 700.0  # raised arms reach 400 mm above the vertex, the chin lies 250 mm below it
# Couch shells, head rests and masks are thinner than 12 mm; so are nose and ears, which are grown back.
_THIN_MM, _GROWN_MM = 6.0, 12.0

# From the brain outwards: bone, scalp, ear and the neck of a tilted head; neck muscle; nose and chin; vertex.
_SIDE_MM, _BACK_MM, _FRONT_MM, _ABOVE_MM = 51.0, 60.0, 100.0, 36.0
_HEIGHT_MM, _BREADTH_MM, _LENGTH_MM = (180.0, 310.0), (120.0, 230.0), (150.0, 290.0)  # adults', bent or not

NO_SKULL = "no head: the scan shows no skull with brain in it"
CUT = "the top of the head is cut off"
NO_CHIN = "no jaw found: chin placed as in an upright head"
ENDS = "the scan ends above the chin"


@dataclass(frozen=True)
class Proposal:
    """A head mask and reasons to check it.

    Attributes:
        mask: uint8, 1 inside the head, on the CT's grid; empty where the scan shows no head.
        flags: The reasons, in words.
    """

    mask: sitk.Image
    flags: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there is a head."""
        return bool(sitk.GetArrayViewFromImage(self.mask).any())


def propose_head(ct: sitk.Image) -> Proposal:
    """Marks the head in a CT: the filled body outline from the vertex down to the chin.

    Args:
        ct: CT in HU, any orientation and voxel size.
    """
    grid, hu = sample_top(ct)
    skull = find_skull(hu)
    if skull is None:
        return Proposal(_on_ct(np.zeros(grid.shape, bool), grid, ct), (NO_SKULL,))
    box = _around(skull, hu.shape)
    size = [side.stop - side.start for side in box[::-1]]
    middle = [(side.start + side.stop - 1) / 2 for side in box[::-1]]
    grid = Grid.centred(np.asarray(grid.origin) + np.multiply(middle, grid.spacing), size, grid.spacing)
    hu, skull = hu[box], replace(skull, cavity=skull.cavity[box])
    body = body_outline(hu, skull.cavity)
    jaw = find_chin(hu, body, skull)
    chin = max(skull.chin[1], 0) if jaw is None else jaw
    complete = chin > 0 or box[0].start > 0  # else the lowest slice of the scan is still head
    flags = [] if complete and jaw is not None else [NO_CHIN if complete else ENDS]
    body[:chin] = False
    mask = _on_ct(connected(body, skull.cavity), grid, ct)
    if skull.cut:
        return Proposal(mask, (*flags, CUT))
    low, high = mask_bounds(mask)
    usual = (_BREADTH_MM, _LENGTH_MM, _HEIGHT_MM if complete else (0.0, _HEIGHT_MM[1]))
    if not all(least <= side <= most for side, (least, most) in zip(high - low, usual, strict=True)):
        flags.append("unusual size: {:.0f} x {:.0f} x {:.0f} mm".format(*(high - low)))
    return Proposal(mask, tuple(flags))


def _around(skull: Skull, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """The part of the lattice (z, y, x) that the head may fill, without shoulders and raised arms."""
    before = np.round([0.0, _FRONT_MM / LATTICE_MM, _SIDE_MM / LATTICE_MM])
    after = np.round([_ABOVE_MM / LATTICE_MM, _BACK_MM / LATTICE_MM, _SIDE_MM / LATTICE_MM])
    low = np.maximum([skull.chin[2], *(skull.low - before)[1:]], 0).astype(int)
    high = np.minimum(skull.high + 1 + after, shape).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def _on_ct(head: Mask, grid: Grid, ct: sitk.Image) -> sitk.Image:
    """A mask (z, y, x) as uint8 on the CT's grid, its edge where linear interpolation crosses a half."""
    array = np.zeros(ct.GetSize()[::-1], np.uint8)
    placed = to_image(head[None].astype(np.float32), grid, ct) if head.any() else None
    if placed is not None:
        (inside,), where = placed
        array[where] = inside >= 0.5
    return from_array(array, ct)


def sample_top(ct: sitk.Image) -> tuple[Grid, NDArray[np.float32]]:
    """The top of the scan in HU on an upright lattice, averaged before it is sampled.

    Args:
        ct: CT in HU, any orientation and voxel size.

    Returns:
        The lattice, whose top face is the scan's, and HU (z, y, x) on it; air outside the scan.
    """
    low, high = bounds(ct)
    low = np.array([low[0], low[1], max(low[2], high[2] - SEARCH_MM)])
    size = np.maximum(np.floor((high - low) / LATTICE_MM), 1).astype(int).tolist()
    grid = Grid.centred((low + high) / 2, size, [LATTICE_MM] * 3)
    steps = zip(ct.GetSpacing(), ct.GetSize(), strict=True)
    averaged = sitk.BinShrink(ct, [max(1, min(int(LATTICE_MM / step), count)) for step, count in steps])
    return grid, sample(averaged, grid, sitk.sitkLinear, AIR_HU)


def body_outline(hu: NDArray[np.float32], seed: Mask) -> Mask:
    """The body around `seed`, its cavities filled slice by slice, without couch, head rest and loose arms.

    Args:
        hu: HU on the lattice (z, y, x).
        seed: What certainly belongs to the body, (z, y, x).
    """
    tissue = (hu > BODY_HU) | seed
    body = connected(opened(tissue, _THIN_MM) | seed, seed)
    body = ndimage.binary_dilation(body, ball(LATTICE_MM), round(_GROWN_MM / LATTICE_MM), mask=tissue)
    return fill_slices(body)


def connected(mask: Mask, seed: Mask) -> Mask:
    """The 6-connected components of `mask` that hold a voxel of `seed`."""
    components, count = ndimage.label(mask)
    kept = np.zeros(count + 1, bool)
    kept[np.unique(components[seed])] = True
    kept[0] = False
    return kept[components]


def fill_slices(mask: Mask) -> Mask:
    """`mask` (z, y, x) with the holes of every axial slice filled."""
    return np.stack([ndimage.binary_fill_holes(axial) for axial in mask])


def opened(mask: Mask, radius: float) -> Mask:
    """The opening of `mask` (z, y, x) by a ball of `radius` mm; the faces of the scan count as thick."""
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    pad = int(np.ceil(radius / LATTICE_MM)) + 1
    box = tuple(slice(max(side.start - pad, 0), side.stop + pad) for side in box)
    result[box] = reach(~reach(~mask[box], radius), radius) & mask[box]
    return result


def reach(mask: Mask, distance: float) -> Mask:
    """All voxels of the lattice within `distance` mm of `mask`."""
    if not mask.any():
        return np.zeros_like(mask)
    return ndimage.distance_transform_edt(~mask, sampling=LATTICE_MM) <= distance


def ball(radius: float) -> Mask:
    """A structuring element of `radius` mm on the lattice."""
    steps = np.arange(-round(radius / LATTICE_MM), round(radius / LATTICE_MM) + 1) * LATTICE_MM
    z, y, x = np.meshgrid(steps, steps, steps, indexing="ij")
    return z * z + y * y + x * x <= radius * radius


BONE_HU = 200.0  # the temporal bone is thin, and thinner on a lattice
_SOFT_HU = (-100.0, 150.0)  # a voxel of brain with the noise of a scan and the streaks of a filling
_BRAIN_HU = (0.0, 90.0)  # the mean of a whole brain; bowel and fat inside the pelvis average below
_GAP_MM = 6.0  # sutures and foramina in an axial slice are narrower than twice this, the throat is not
_CORE_MM = 10.0  # orbits, sinuses and the spinal canal are narrower than twice this, brain is not
_LEAST_BRAIN_ML = 120.0  # a tenth of a brain
_SHELL_MM = 9.0  # from the cavity's surface, which the opening has rounded, to bone
_LEAST_SHELL = 0.5  # of that surface; rings of bone without floor and roof (pelvis) stay below
_ROOF_MM = 24.0  # above the brain's top, which the opening has lowered, there is bone

# How far below the brain's top the chin lies, in adults, thrown back, upright and bent forward; and below the
# lowest slice in which the skull is a closed ring, the only landmark of a head that the scan cuts (mm).
_CHIN_UNDER_TOP, _CHIN_UNDER_RING = (140.0, 215.0, 285.0), (-30.0, 85.0, 165.0)
_FRONT = 0.45  # of a slice of the body, from the front: holds the jaw, but no vertebra
_JAW_CM2 = (5.0, 2.0)  # bone there, in the jaw's fullest and its last slice; hyoid and larynx have less


@dataclass(frozen=True)
class Skull:
    """The braincase on the lattice.

    Attributes:
        cavity: The brain, (z, y, x); in a scan that cuts the head, what is left of it.
        cut: Whether the scan ends in the brain.
    """

    cavity: Mask
    cut: bool

    @cached_property
    def low(self) -> NDArray[np.int64]:
        """First index of the cavity along (z, y, x)."""
        return np.argwhere(self.cavity).min(axis=0)

    @cached_property
    def high(self) -> NDArray[np.int64]:
        """Last index of the cavity along (z, y, x)."""
        return np.argwhere(self.cavity).max(axis=0)

    @property
    def chin(self) -> tuple[int, int, int]:
        """Slices where the chin lies at the highest, upright, and at the lowest; may leave the lattice."""
        start, below = (self.low[0], _CHIN_UNDER_RING) if self.cut else (self.high[0], _CHIN_UNDER_TOP)
        high, upright, low = (int(start) - round(mm / LATTICE_MM) for mm in below)
        return high, upright, low


def find_skull(hu: NDArray[np.float32]) -> Skull | None:
    """The braincase, or None where the scan shows none.

    Args:
        hu: HU on the lattice (z, y, x).
    """
    bone = hu > BONE_HU
    soft = (hu > _SOFT_HU[0]) & (hu < _SOFT_HU[1])
    # Slice by slice: a head that the scan's top cuts is open there, its rings are not.
    inside = fill_slices(_closed_slices(bone)) & soft
    components, count = ndimage.label(opened(inside, _CORE_MM))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:] * LATTICE_MM**3 / 1000
    for index in np.argsort(sizes)[::-1]:
        cavity = components == index + 1
        if sizes[index] >= _LEAST_BRAIN_ML and _is_brain(cavity, hu, bone):
            return Skull(cavity, _is_open(cavity, bone))
    return None


def find_chin(hu: NDArray[np.float32], body: Mask, skull: Skull) -> int | None:
    """The lattice's slice of the jaw's lower edge; None where no jaw is found.

    Args:
        hu: HU on the lattice (z, y, x).
        body: The filled outline of the head and of neck and shoulders under it, (z, y, x).
        skull: Of this head.
    """
    high, _, low = np.clip(skull.chin, 0, len(hu)).tolist()
    areas = np.array([_front_bone(hu[z], body[z]) for z in range(low, high)])
    runs, count = ndimage.label(areas >= _JAW_CM2[1])
    for run in range(1, count + 1):
        if areas[runs == run].max() >= _JAW_CM2[0]:
            return low + int(np.argmax(runs == run))
    return None


def _front_bone(hu: NDArray[np.float32], body: Mask) -> float:
    """Bone in the front of an axial slice (y, x), in cm2; none where the shoulders have begun."""
    columns, rows = np.flatnonzero(body.any(axis=0)), np.flatnonzero(body.any(axis=1))
    if not len(rows) or len(columns) == body.shape[1]:
        return 0.0
    front = slice(rows[0], rows[0] + round(_FRONT * len(rows)))
    return float(((hu > BONE_HU) & body)[front].sum()) * LATTICE_MM**2 / 100


def _closed_slices(bone: Mask) -> Mask:
    """Bone with the small gaps of every axial slice closed."""
    disc = ball(_GAP_MM)[[round(_GAP_MM / LATTICE_MM)]]
    pad = disc.shape[1]
    wide = np.pad(bone, ((0, 0), (pad, pad), (pad, pad)))
    return ndimage.binary_closing(wide, disc)[:, pad:-pad, pad:-pad]


def _is_brain(cavity: Mask, hu: NDArray[np.float32], bone: Mask) -> bool:
    """Whether HU are those of brain and bone surrounds it, except at the scan's own faces."""
    mean = float(hu[cavity].mean())
    surface = cavity & ~ndimage.binary_erosion(cavity, border_value=1)
    shell = (surface & reach(bone, _SHELL_MM)).sum() / max(int(surface.sum()), 1)
    return _BRAIN_HU[0] < mean < _BRAIN_HU[1] and bool(shell >= _LEAST_SHELL)


def _is_open(cavity: Mask, bone: Mask) -> bool:
    """Whether there is no roof over the brain: the scan's top, level or oblique, cuts the head."""
    top = int(np.argwhere(cavity).max(axis=0)[0])
    roof = np.any(bone[top : top + round(_ROOF_MM / LATTICE_MM)], axis=0)
    return float(roof[cavity[top]].mean()) < 0.5
