"""What of a ROI the scan does not show, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import SimpleITK as sitk

from hnseg.data.resample import index_box
from hnseg.errors import HnsegError
from hnseg.field_of_view import cuts, without_pet
from hnseg.geometry import Grid, Point, bounds
from hnseg.stage import Stage

# Less than a hundredth of the ROI without PET is not worth a word.
_LEAST_SHARE = 0.01


def limits(
    stage: Stage, grids: Sequence[Grid], ct: sitk.Image, pet: sitk.Image, head: sitk.Image | None
) -> Iterator[str]:
    """Says where the scan ends in the head, and how much of the ROI is without PET.

    Args:
        stage: The stage.
        grids: Its cubes, one or several.
        ct: CT, HU.
        pet: PET, SUV, on a grid of its own.
        head: The head mask that has placed the ROI, where one has.

    Raises:
        HnsegError: A head mask places the ROI outside the CT, or the whole ROI is without PET. Not so around
            lesions: the stage that found them has seen PET elsewhere.
    """
    if head is not None:
        cut = cuts(head, ct)
        if cut.top:
            yield "CT cut off at the top of the head: the head's height, which places the ROI, is unsure"
        if cut.bottom:
            yield "CT cut off within the head: it shows no neck"
    if stage.name == "head":  # which sees CT alone
        return
    if stage.placement == "below_head" and all(index_box(ct, grid.corners) is None for grid in grids):
        low, high = bounds(ct)
        raise HnsegError(
            f"the head mask places the {stage.name} ROI around {_point(grids[0].center)} mm, outside the CT "
            f"(from {_point(low)} to {_point(high)} mm): check that the mask is of this scan"
        )
    share = without_pet(grids, ct, pet)
    if share == 1 and stage.placement != "lesions":
        low, high = bounds(pet)
        raise HnsegError(
            f"PET does not reach the {stage.name} ROI (around {_point(grids[0].center)} mm; the PET lies "
            f"from {_point(low)} to {_point(high)} mm): check that both belong to one examination"
        )
    if share >= _LEAST_SHARE:
        yield f"PET does not reach {share:.0%} of the {stage.name} ROI: seen on CT alone there"


def _point(point: Point) -> str:
    return "({:.0f}, {:.0f}, {:.0f})".format(*point)
