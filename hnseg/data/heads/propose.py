"""One scan's head mask from anatomy alone: the body around the skull and under it, down to the chin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.data.heads.skull import (
    LATTICE_MM,
    Mask,
    Skull,
    body_outline,
    connected,
    find_chin,
    find_skull,
    sample_top,
)
from hnseg.data.resample import to_image
from hnseg.imaging.grid import Grid
from hnseg.imaging.images import from_array
from hnseg.imaging.masks import mask_bounds

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
    grid, hu, skull = _cropped(grid, box), hu[box], skull.cropped(box)
    body = body_outline(hu, skull.cavity)
    chin, flags = _chin(hu, body, skull, ends=box[0].start == 0)
    body[:chin] = False
    mask = _on_ct(connected(body, skull.cavity), grid, ct)
    if skull.cut:
        flags.append(CUT)
    else:
        flags += _unusual_size(mask, complete=ENDS not in flags)
    return Proposal(mask, tuple(flags))


def _around(skull: Skull, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """The part of the lattice (z, y, x) that the head may fill, without shoulders and raised arms."""
    before = np.round([0.0, _FRONT_MM / LATTICE_MM, _SIDE_MM / LATTICE_MM])
    after = np.round([_ABOVE_MM / LATTICE_MM, _BACK_MM / LATTICE_MM, _SIDE_MM / LATTICE_MM])
    low = np.maximum([skull.chin[2], *(skull.low - before)[1:]], 0).astype(int)
    high = np.minimum(skull.high + 1 + after, shape).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def _chin(hu: NDArray[np.float32], body: Mask, skull: Skull, *, ends: bool) -> tuple[int, list[str]]:
    """The lowest slice of the head, and flags.

    Args:
        hu: HU around the head (z, y, x).
        body: The filled outline there.
        skull: Of this head.
        ends: Whether the lowest slice is the scan's own.
    """
    found = find_chin(hu, body, skull)
    chin = max(skull.chin[1], 0) if found is None else found
    if ends and chin == 0:
        return chin, [ENDS]
    return chin, [NO_CHIN] if found is None else []


def _unusual_size(mask: sitk.Image, *, complete: bool) -> list[str]:
    low, high = mask_bounds(mask)
    usual = (_BREADTH_MM, _LENGTH_MM, _HEIGHT_MM if complete else (0.0, _HEIGHT_MM[1]))
    if all(least <= side <= most for side, (least, most) in zip(high - low, usual, strict=True)):
        return []
    return ["unusual size: {:.0f} x {:.0f} x {:.0f} mm".format(*(high - low))]


def _cropped(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
    """The part of a grid that a box (z, y, x) cuts out of it."""
    size = [side.stop - side.start for side in box[::-1]]
    middle = [(side.start + side.stop - 1) / 2 for side in box[::-1]]
    return Grid.centred(np.asarray(grid.origin) + np.multiply(middle, grid.spacing), size, grid.spacing)


def _on_ct(head: Mask, grid: Grid, ct: sitk.Image) -> sitk.Image:
    """A mask (z, y, x) as uint8 on the CT's grid, its edge where linear interpolation crosses a half."""
    array = np.zeros(ct.GetSize()[::-1], np.uint8)
    placed = to_image(head[None].astype(np.float32), grid, ct) if head.any() else None
    if placed is not None:
        (inside,), where = placed
        array[where] = inside >= 0.5
    return from_array(array, ct)
