"""The contact sheet: every proposed head in two planes, to check forty at a glance."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hnseg.data.heads.outline import LATTICE_MM, Mask, sample_top
from hnseg.files import replacing

CASES_A_ROW = 5
SHOWN_MM = (450.0, 330.0)  # from the top of the scan down: raised arms and head, or head and chest; across
CT_WINDOW = (-200.0, 500.0)  # HU: soft tissue and bone
FOUND, MISSING = "#ffffff", "#ff5050"  # colours of the titles
OUTLINE, BOX = "#ffd75e", "#20c0ff"


@dataclass(frozen=True)
class Panel:
    """One case's two pictures.

    Attributes:
        case_id: The case.
        remark: What is said under its name.
        ct: Sagittal (z, y) and coronal (z, x) slice through the middle of the mask, else of the scan, HU.
        mask: The head in the same slices.
        box: The whole mask's first row, first column, rows and columns in either; empty without a head.
    """

    case_id: str
    remark: str
    ct: tuple[NDArray[np.float32], NDArray[np.float32]]
    mask: tuple[Mask, Mask]
    box: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, case_id: str, ct: sitk.Image, head: sitk.Image, remark: str) -> Panel:
        """Cuts the slices out of a CT and its head mask."""
        grid, hu = sample_top(ct)
        upright = grid.image(np.zeros(grid.shape, np.uint8))
        inside = sitk.Resample(head, upright, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        mask = sitk.GetArrayFromImage(inside)[-round(SHOWN_MM[0] / LATTICE_MM) :] != 0
        hu = hu[-len(mask) :]
        where = np.argwhere(mask)
        first, last = (where.min(0), where.max(0)) if len(where) else (np.zeros(3, int), np.array(hu.shape))
        _, y, x = (first + last) // 2
        (top, back, left), (height, depth, width) = first, last - first + 1
        box = ((top, back, height, depth), (top, left, height, width)) if len(where) else ()
        return cls(case_id, remark, (hu[:, :, x], hu[:, y]), (mask[:, :, x], mask[:, y]), box)


def draw_sheet(panels: Sequence[Panel], path: Path) -> None:
    """Draws all cases, five a row, the patient's right on the left of the coronal slice.

    Args:
        panels: The cases, in order; nothing is drawn for none.
        path: The PNG to write, whole or not at all.
    """
    if not panels:
        return
    columns = min(CASES_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    picture, title = 2.8, 0.7  # inches high
    height = rows * (picture + title)
    figure = Figure(figsize=(4.2 * columns, height), facecolor="black")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.0, 0.0, 1.0, 1 - title / height, wspace=0.02, hspace=title / picture)
    axes = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    for pair in axes.ravel():
        pair.set_axis_off()
    for pair, panel in zip(axes, panels, strict=False):
        for plane, place in enumerate(pair):
            _draw(place, panel, plane)
        colour = FOUND if panel.box else MISSING
        pair[0].text(0.02, 1.02, _title(panel), transform=pair[0].transAxes, color=colour, fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=75, facecolor="black")


def _draw(axes: Axes, panel: Panel, plane: int) -> None:
    """One slice with the outline and the box, the head up."""
    low, high = CT_WINDOW
    axes.imshow(panel.ct[plane], cmap="gray", origin="lower", vmin=low, vmax=high, interpolation="bilinear")
    mask = panel.mask[plane]
    top, middle = mask.shape[0], mask.shape[1] / 2
    if mask.any() and not mask.all():
        axes.contour(mask, [0.5], colors=OUTLINE, linewidths=1.0)
    if panel.box:
        row, column, height, width = panel.box[plane]
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=BOX, linewidth=1.0))
        middle = column + width / 2
    shown, across = (mm / LATTICE_MM for mm in SHOWN_MM)
    axes.set(xlim=(middle - across / 2, middle + across / 2), ylim=(top - shown, top))


def _title(panel: Panel) -> str:
    return "\n".join([panel.case_id, *textwrap.wrap(panel.remark, 48)])
