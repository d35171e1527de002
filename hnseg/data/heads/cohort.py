"""Head masks for a random part of a cohort, with a table and a contact sheet to check them by."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hnseg.data.heads.propose import LATTICE_MM, Mask, propose_head, sample_top
from hnseg.errors import HnsegError
from hnseg.files import read_table, replacing, require_writable, write_table
from hnseg.imaging.case import Case, mask_file
from hnseg.imaging.images import read_image, read_mask, write_image
from hnseg.imaging.masks import mask_bounds
from hnseg.processes import map_cases

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
        note: The text under its name.
        ct: Sagittal (z, y) and coronal (z, x) slice through the middle of the mask, else of the scan, HU.
        mask: The head in the same slices.
        box: The whole mask's first row, first column, rows and columns in either; empty without a head.
    """

    case_id: str
    note: str
    ct: tuple[NDArray[np.float32], NDArray[np.float32]]
    mask: tuple[Mask, Mask]
    box: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, case_id: str, ct: sitk.Image, head: sitk.Image, note: str) -> Panel:
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
        return cls(case_id, note, (hu[:, :, x], hu[:, y]), (mask[:, :, x], mask[:, y]), box)


def draw_sheet(panels: Sequence[Panel], path: Path) -> None:
    """Draws all cases, five a row, the patient's right on the left of the coronal slice.

    Args:
        panels: The cases, in order; without any, nothing is drawn.
        path: The PNG to write.
    """
    if not panels:
        return
    columns = min(CASES_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    picture, title = 2.8, 0.7  # inches high
    height = rows * (picture + title)
    figure = Figure(figsize=(4.2 * columns, height), facecolor="black")
    figure.subplots_adjust(0.0, 0.0, 1.0, 1 - title / height, wspace=0.02, hspace=title / picture)
    axes = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    for place in axes.flat:
        place.set_axis_off()
    for pair, panel in zip(axes, panels, strict=False):
        for plane, place in enumerate(pair):
            _draw(place, panel, plane)
        text = "\n".join([panel.case_id, *textwrap.wrap(panel.note, 48)])
        colour = FOUND if panel.box else MISSING
        pair[0].text(0.02, 1.02, text, transform=pair[0].transAxes, color=colour, fontsize=10)
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


TABLE, SHEET = "heads.csv", "contact_sheet.png"
FIELDS = ("case_id", "head", "x_min", "x_max", "y_min", "y_max", "z_min", "z_max", "note")


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case_id: The case.
        head: Whether its mask holds a head; None where the case failed.
        box: Of the mask in mm, LPS: x_min, x_max, y_min, y_max, z_min, z_max; empty without a head.
        note: What to check, or the reason of the failure.
        panel: Its picture; None where the case failed.
        kept: Whether the mask was there before.
    """

    case_id: str
    head: bool | None
    box: tuple[float, ...] = ()
    note: str = ""
    panel: Panel | None = None
    kept: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The case's line of heads.csv."""
        head = {True: "yes", False: "no", None: "failed"}[self.head]
        values = (self.case_id, head, *(self.box or [""] * 6), self.note)
        return dict(zip(FIELDS, values, strict=True))


def draw_cases(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """`count` cases at random, all if there are fewer; with the same seed a larger draw holds the smaller.

    Args:
        cases: The cohort.
        count: How many; forty in the paper (section 2.3).
        seed: Not negative.
    """
    order = np.random.default_rng(seed).permutation(len(cases))[:count]
    return [cases[index] for index in sorted(order)]


def propose_heads(
    cases: Sequence[Case], out: Path, *, overwrite: bool = False, workers: int | None = None
) -> list[Outcome]:
    """Writes OUT/CASE.nii.gz for every case, OUT/heads.csv and OUT/contact_sheet.png.

    A mask that is there already may have been corrected by hand: it is kept, and drawn with the others. Lines
    of the table stay as long as their masks do, and a call that is stopped leaves those of what it did.

    Args:
        cases: Of which only the CT is read.
        out: Folder of the masks.
        overwrite: Propose anew what is there already.
        workers: Processes; a whole-body CT takes up to 2 GB in each. Default: up to four.

    Returns:
        One outcome a case, in the order of `cases`; a CT that cannot be read is a failed one.
    """
    require_writable(out / TABLE)
    _, rows = read_table(out / TABLE, "correct it, or move it away: the masks stay", FIELDS)
    lines: dict[str, dict[str, Any]] = {
        row["case_id"]: row for row in rows if mask_file(out, row["case_id"]).exists()
    }
    notes = {case_id: line["note"] for case_id, line in lines.items()}
    work = partial(_propose_case, out=out, overwrite=overwrite, notes=notes)
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(map_cases(work, cases, "proposing heads", workers=workers))
    finally:
        if outcomes:
            by_case = lines | {outcome.case_id: outcome.row for outcome in outcomes}
            write_table(out / TABLE, FIELDS, (by_case[case_id] for case_id in sorted(by_case)))
    draw_sheet([outcome.panel for outcome in outcomes if outcome.panel], out / SHEET)
    return outcomes


def summary(outcomes: Sequence[Outcome], out: Path) -> str:
    """A line for every failed case, and one on all."""
    heads = [outcome.head for outcome in outcomes]
    counts = [f"{heads.count(True)} heads", f"{heads.count(False)} scans without one"]
    if kept := sum(outcome.kept for outcome in outcomes):
        counts.append(f"{kept} of these masks were there and are left as they are (--overwrite redoes them)")
    if failed := heads.count(None):
        counts.append(f"{failed} failed")
    lines = [f"{outcome.case_id}: {outcome.note}" for outcome in outcomes if outcome.head is None]
    return "\n".join([*lines, f"{out}: {', '.join(counts)}; look at {SHEET}"])


def _propose_case(case: Case, *, out: Path, overwrite: bool, notes: Mapping[str, str]) -> Outcome:
    path = mask_file(out, case.case_id)
    kept = path.exists() and not overwrite
    try:
        case.check()
        ct = read_image(case.ct)
        if kept:
            mask, note = read_mask(path, ct), notes.get(case.case_id, "")
        else:
            proposal = propose_head(ct)
            mask, note = proposal.mask, "; ".join(proposal.flags)
            write_image(mask, path)
    except HnsegError as error:
        return Outcome(case.case_id, head=None, note=str(error))
    head = bool(sitk.GetArrayViewFromImage(mask).any())
    sides = zip(*mask_bounds(mask), strict=True) if head else ()
    box = tuple(round(float(mm), 1) for pair in sides for mm in pair)
    return Outcome(case.case_id, head, box, note, Panel.of(case.case_id, ct, mask, note), kept)
