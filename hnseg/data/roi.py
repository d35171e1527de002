"""Where a training case's ROI lies: by its labels, by a drawn head, or by a prediction as at inference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hnseg import images
from hnseg.cases import Case, mask_file
from hnseg.errors import HnsegError
from hnseg.geometry import Grid
from hnseg.images import to_array
from hnseg.masks import foreground_box, positions
from hnseg.placement import place
from hnseg.stage import Stage
from hnseg.tables import read_table


def needs_head(stage: Stage) -> bool:
    """Whether a stage is placed by head masks or learns them."""
    return stage.name == "head" or stage.placement == "below_head"


def read_mask(case: Case, stage: Stage, ct: sitk.Image, masks: Path | None) -> sitk.Image | None:
    """A case's head mask (1, whichever value an editor gave it) where the stage needs one, else its coarse
    prediction; None without `masks`.

    Raises:
        HnsegError: It is not there, or not on the CT's grid.
    """
    if masks is None and not needs_head(stage):
        return None
    path = None if masks is None else mask_file(masks, case.case_id)
    if path is not None and path.exists():
        mask = images.read_mask(path, ct)
        return mask > 0 if needs_head(stage) else mask
    if needs_head(stage):
        raise HnsegError(
            f"{case.case_id}: no head mask {path or 'since data.heads is not set'}; hnseg heads propose "
            "makes some for the head stage, which then labels the rest (python infer.py until=head out=HEADS)"
        )
    raise HnsegError(
        f"{case.case_id}: no coarse prediction {path}; make them with models that have not seen the case "
        "(python infer.py until=coarse unseen=true out=COARSE)"
    )


def place_roi(
    case: Case, stage: Stage, ct: sitk.Image, pet: sitk.Image, mask: sitk.Image | None, masks: Path | None
) -> tuple[Grid, str | None]:
    """Places a training case's ROI; labels and drawn heads as they are, all else as at inference.

    Heads that infer.py labelled lie beside its cases.csv.

    Args:
        case: The case.
        stage: The stage.
        ct: CT, HU.
        pet: PET, SUV.
        mask: What places it: a head mask, lesion labels, or a coarse prediction.
        masks: The folder that `mask` comes from, None for the case's own labels.

    Returns:
        The grid, and the fallback that was taken where a head or a prediction is empty.

    Raises:
        HnsegError: Labels without a lesion cannot place an ROI.
    """
    if needs_head(stage):
        drawn = masks is None or not (masks / "cases.csv").exists()
        return place(stage, ct, pet, mask, drawn=drawn)
    if masks is not None:
        empty = mask is not None and not to_array(mask).any()
        return place(stage, ct, pet, _searched(masks, case.case_id) if empty else mask)
    try:
        return stage.grid(ct, mask), None
    except ValueError as error:
        raise HnsegError(f"{case.case_id}: {error}") from error


def ml_outside(label: sitk.Image, grid: Grid) -> dict[str, float]:
    """Volume of each class that the ROI does not hold, in ml, by label."""
    voxel_ml = float(np.prod(label.GetSpacing())) / 1000
    low, high = grid.corners.min(axis=0), grid.corners.max(axis=0)
    array = to_array(label)
    box = foreground_box(array)
    if box is None:
        return {}
    values, points = array[box][array[box] > 0], positions(label)
    lost = np.any((points < low) | (points > high), axis=1)
    return {str(value): float((lost & (values == value)).sum() * voxel_ml) for value in np.unique(values)}


def _searched(masks: Path, case_id: str) -> sitk.Image | None:
    """The ROI in which infer.py looked for coarse lesions, empty; None if it does not say.

    The brightest PET is sought there, and not in a bladder far below.

    Raises:
        HnsegError: cases.csv cannot be read.
    """
    path = masks / "cases.csv"
    remedy = "make it and the masks anew with python infer.py until=coarse unseen=true"
    _, rows = read_table(path, remedy, ("case_id",))
    roi = next((row.get("roi") for row in rows if row["case_id"] == case_id), None)
    if not roi:
        return None
    try:
        grid = Grid.from_dict(json.loads(roi))
    except (ValueError, LookupError, TypeError) as error:
        raise HnsegError(f"{path}: {case_id} has roi {roi[:30]!r}, no grid; {remedy}") from error
    return grid.image(np.zeros(grid.shape, np.uint8))
