"""One picture a case: truth and prediction on CT, and on CT with PET, in three planes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hnseg.cases import Case
from hnseg.evaluation.view import View, load_view
from hnseg.files import replacing
from hnseg.metrics import CLASSES, CaseCounts

WIDTH = 13.0  # inches
CT_WINDOW = (-160.0, 240.0)  # HU, soft tissue
PET_COLOURS = "hot"
LEAST_SUV = 5.0  # the PET scale reaches at least so far: noise must not look like uptake
NAMES = {"gtvp": "GTVp", "gtvn": "GTVn"}
# Truth, and a lighter tint for the prediction: where both run together the truth shows between the dashes.
COLOURS = {"gtvp": ("#0a9dff", "#8ff0ff"), "gtvn": ("#1fbf24", "#c8ff5a")}


@dataclass(frozen=True)
class Plane:
    """One slice of every volume, rows and columns as drawn.

    Attributes:
        title: Its name and where it lies.
        index: Index into arrays (z, y, x).
        edge: (width, height) of a pixel in mm.
        head_up: Whether row 0 belongs at the bottom.
        sides: What lies at the left, right, top and bottom.
    """

    title: str
    index: tuple[Any, ...]
    edge: tuple[float, float]
    head_up: bool
    sides: str


def overlay(case: Case, prediction: Path, out: Path) -> Path:
    """Draw a case through its largest lesion, as radiologists look at it: the patient's right on the left.

    Contours are solid for the truth and dashed for the prediction, one colour a class.

    Args:
        case: CT, PET and, where known, truth; any orientation.
        prediction: Label map on the CT's grid.
        out: The PNG to write, whole or not at all.

    Returns:
        `out`.

    Raises:
        HnsegError: A file that cannot be read, or a mask that is not on the CT's grid.
    """
    view = load_view(case, prediction)
    planes = list(_planes(view))
    widths = [plane.edge[0] * view.ct[plane.index].shape[1] for plane in planes]
    heights = [plane.edge[1] * view.ct[plane.index].shape[0] for plane in planes]
    inches_per_mm = (WIDTH - 1.0) / sum(widths)  # an inch for the PET scale, one for title and legend
    size = (WIDTH, 2 * max(heights) * inches_per_mm + 1.1)
    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, 3, width_ratios=widths)
    suv = Normalize(0, max(LEAST_SUV, float(np.percentile(view.pet, 99.9))))
    for row, with_pet in zip(rows, (False, True), strict=True):
        for axes, plane in zip(row, planes, strict=True):
            _draw(axes, view, plane, suv if with_pet else None)
            axes.set_title("" if with_pet else plane.title, color="white", fontsize=10)
    figure.suptitle(_title(case.case_id, view.counts), color="white", fontsize=14)
    _add_scale(figure, rows[1].tolist(), suv)
    _add_legend(figure, view.truth is not None)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="black")
    return out


def _planes(view: View) -> Iterator[Plane]:
    (x, y, z), (dx, dy, dz) = view.focus, view.spacing
    left, back, up = view.focus_mm
    everything = slice(None)
    yield Plane(f"Axial, z = {up:.0f} mm", (z,), (dx, dy), head_up=False, sides="RLAP")
    yield Plane(f"Coronal, y = {back:.0f} mm", (everything, y), (dx, dz), head_up=True, sides="RLSI")
    yield Plane(
        f"Sagittal, x = {left:.0f} mm", (everything, everything, x), (dy, dz), head_up=True, sides="APSI"
    )


def _draw(axes: Axes, view: View, plane: Plane, suv: Normalize | None) -> None:
    """One slice of CT, with PET on it where its scale is given, and the contours."""
    ct = view.ct[plane.index]
    rows, columns = ct.shape
    width, height = columns * plane.edge[0], rows * plane.edge[1]
    place: dict[str, Any] = {
        "origin": "lower" if plane.head_up else "upper",
        "extent": (0, width, 0, height) if plane.head_up else (0, width, height, 0),
        "interpolation": "bilinear",
    }
    axes.imshow(ct, cmap="gray", vmin=CT_WINDOW[0], vmax=CT_WINDOW[1], **place)
    if suv is not None:
        pet = view.pet[plane.index]
        opacity = 0.75 * np.sqrt(np.clip(suv(pet), 0, 1))
        axes.imshow(pet, cmap=PET_COLOURS, norm=suv, alpha=opacity, **place)
    if view.truth is not None:
        _outline(axes, view.truth[plane.index], plane.edge, kind=0)
    _outline(axes, view.prediction[plane.index], plane.edge, kind=1)
    axes.set_axis_off()
    for letter, (x, y) in zip(plane.sides, ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)), strict=True):
        axes.text(x, y, letter, transform=axes.transAxes, **_LETTER)


_LETTER: dict[str, Any] = {"color": "#ffd75e", "fontsize": 10, "ha": "center", "va": "center"}


def _outline(axes: Axes, labels: NDArray[np.uint8], edge: tuple[float, float], kind: int) -> None:
    """Contours of both classes of a slice; kind 0 is the truth, 1 the prediction."""
    x, y = ((np.arange(size) + 0.5) * mm for size, mm in zip(labels.shape[::-1], edge, strict=True))
    for name, label in CLASSES.items():
        mask = labels == label
        if mask.any() and not mask.all():
            style: Any = _line(name, kind)
            axes.contour(x, y, mask, [0.5], colors=style["color"], linewidths=1.6, linestyles=[style["ls"]])


def _line(name: str, kind: int) -> dict[str, Any]:
    return {"color": COLOURS[name][kind], "ls": ("solid", (0, (3, 2)))[kind]}


def _add_scale(figure: Figure, row: list[Axes], suv: Normalize) -> None:
    bar = figure.colorbar(ScalarMappable(suv, PET_COLOURS), ax=row, pad=0.01, fraction=0.02)
    bar.set_label("PET (SUV)", color="white")
    bar.ax.tick_params(colors="white")


def _add_legend(figure: Figure, with_truth: bool) -> None:
    sides = ("truth", "prediction")
    lines = [
        Line2D([], [], label=f"{title} {sides[kind]}", linewidth=1.8, **_line(name, kind))
        for name, title in NAMES.items()
        for kind in ((0, 1) if with_truth else (1,))
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, labelcolor="white")


def _title(case_id: str, counts: CaseCounts | None) -> str:
    if counts is None:
        return f"{case_id}   (truth not known)"
    dice = {title: getattr(counts, name).dice for name, title in NAMES.items()}
    shown = [
        f"{title} in neither" if value is None else f"{title} Dice {value:.2f}"
        for title, value in dice.items()
    ]
    return "   ".join([case_id, *shown])
