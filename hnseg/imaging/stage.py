"""Where a stage's grid lies on one case."""

from __future__ import annotations

import SimpleITK as sitk

from hnseg.card import Stage
from hnseg.imaging import masks
from hnseg.imaging.grid import Grid, coarse_grid, nearest_corner, scan_grid, top_of_scan_grid


def place_grid(stage: Stage, ct: sitk.Image, reference: sitk.Image | None = None) -> Grid:
    """Places a stage's grid on one case.

    A mean voxel is rounded, as the authors' index is: predictions that differ a little, as those of bfloat16
    and float32 do, nearly always place the grid alike.

    Args:
        stage: The stage.
        ct: The case's CT.
        reference: The head mask for `below_head`, a lesion label image for `lesions`.

    Raises:
        ValueError: The placement needs a reference, and there is none or it is empty.
    """
    match stage.placement:
        case "top_of_scan":
            return top_of_scan_grid(ct, stage.size, stage.spacing, stage.lateral)
        case "scan":
            return scan_grid(ct, stage.size, stage.spacing)
        case "below_head":
            if reference is None:
                raise ValueError("no head mask to place the ROI by")
            return coarse_grid(reference, stage.size, stage.spacing, stage.top)
        case "lesions":
            center = None if reference is None else masks.centroid(reference)
            if reference is None or center is None:
                raise ValueError("no lesion voxel to centre the ROI on")
            return Grid.centred(nearest_corner(reference, center), stage.size, stage.spacing)
