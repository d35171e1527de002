"""Slices of CT, PET and both with the contours of truth and prediction, as every picture shows them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hnseg.metrics import CLASSES, CaseCounts

CT_WINDOW = (-160.0, 240.0)  # HU, soft tissue
PET_COLOURS = "hot"
LEAST_SUV = 5.0  # the PET scale reaches at least so far: noise must not look like uptake
NAMES = {"gtvp": "GTVp", "gtvn": "GTVn"}
# Truth, and a lighter tint for the prediction: where both run together the truth shows between the dashes.
COLOURS = {"gtvp": ("#0a9dff", "#8ff0ff"), "gtvn": ("#1fbf24", "#c8ff5a")}
Kind = Literal["ct", "pet", "fused"]
Index = tuple[int, int, int]  # a voxel's, (x, y, z)


@dataclass(frozen=True)
class View:
    """Arrays (z, y, x) on one grid: x runs to the patient's left, y to the back, z to the head.

    Attributes:
        ct: In HU.
        pet: In SUV, 0 outside its field of view.
        truth: Labels; None where they are not known.
        prediction: Labels.
        spacing: (x, y, z) in mm.
        focus: Index (x, y, z) of the voxel the slices run through.
        focus_mm: The same in patient space (x, y, z), LPS mm.
        counts: Scores of the whole scan; None without truth.
    """

    ct: NDArray[np.float32]
    pet: NDArray[np.float32]
    truth: NDArray[np.uint8] | None
    prediction: NDArray[np.uint8]
    spacing: tuple[float, float, float]
    focus: Index
    focus_mm: tuple[float, float, float]
    counts: CaseCounts | None


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


def planes(view: View) -> Iterator[Plane]:
    """The axial, coronal and sagittal slice through a view's focus."""
    (x, y, z), (dx, dy, dz) = view.focus, view.spacing
    left, back, up = view.focus_mm
    everything = slice(None)
    yield Plane(f"Axial, z = {up:.0f} mm", (z,), (dx, dy), head_up=False, sides="RLAP")
    yield Plane(f"Coronal, y = {back:.0f} mm", (everything, y), (dx, dz), head_up=True, sides="RLSI")
    yield Plane(
        f"Sagittal, x = {left:.0f} mm", (everything, everything, x), (dy, dz), head_up=True, sides="APSI"
    )


def suv_scale(pet: NDArray[np.float32]) -> Normalize:
    """The scale of a PET (z, y, x) in SUV: from 0 up to all but its thousandth brightest voxel."""
    return Normalize(0, max(LEAST_SUV, float(np.percentile(pet, 99.9))))


def draw_slice(axes: Axes, view: View, plane: Plane, kind: Kind, suv: Normalize) -> None:
    """One slice of CT, of PET (white is hot), or of CT with PET on it, and the contours of both masks.

    Contours are solid for the truth and dashed for the prediction, one colour a class.
    """
    ct, pet = view.ct[plane.index], view.pet[plane.index]
    rows, columns = ct.shape
    width, height = columns * plane.edge[0], rows * plane.edge[1]
    place: dict[str, Any] = {
        "origin": "lower" if plane.head_up else "upper",
        "extent": (0, width, 0, height) if plane.head_up else (0, width, height, 0),
        "interpolation": "bilinear",
    }
    if kind == "pet":
        axes.imshow(pet, cmap="gray", norm=suv, **place)
    else:
        axes.imshow(ct, cmap="gray", vmin=CT_WINDOW[0], vmax=CT_WINDOW[1], **place)
    if kind == "fused":
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


def legend_lines(with_truth: bool) -> list[Line2D]:
    """What a legend shows: a line for each class, of truth (where known) and prediction."""
    sides = ("truth", "prediction")
    return [
        Line2D([], [], label=f"{title} {sides[kind]}", linewidth=1.8, **_line(name, kind))
        for name, title in NAMES.items()
        for kind in ((0, 1) if with_truth else (1,))
    ]
