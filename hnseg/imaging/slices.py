"""Slices of CT, PET and both with the contours of ground truth and prediction, as every picture has them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hnseg.metrics.official import CLASSES

CT_WINDOW = (-160.0, 240.0)  # HU, soft tissue
PET_COLOURS = "hot"
LEAST_SUV = 5.0  # the PET scale reaches at least so far: noise must not look like uptake
# Ground truth, and a lighter tint for the prediction: where both coincide, each shows beside the other.
COLOURS = {"GTVp": ("#0a9dff", "#8ff0ff"), "GTVn": ("#1fbf24", "#c8ff5a")}
SIDES = ("ground truth", "prediction")
LINES: tuple[Any, Any] = ("solid", (0, (3, 2)))
Kind = Literal["ct", "pet", "fused"]
Index = tuple[int, int, int]  # a voxel's, (x, y, z)


@dataclass(frozen=True)
class View:
    """Arrays (z, y, x) on one grid: x runs to the patient's left, y to the back, z to the head."""

    ct: NDArray[np.float32]  # HU
    pet: NDArray[np.float32]  # SUV, 0 outside its field of view
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    spacing: tuple[float, float, float]  # (x, y, z) in mm
    focus: Index  # the voxel that the slices run through
    focus_mm: tuple[float, float, float]  # the same in patient space (x, y, z), LPS mm


@dataclass(frozen=True)
class Plane:
    """One slice of every volume, rows and columns as drawn."""

    title: str
    index: tuple[Any, ...]  # into arrays (z, y, x)
    edge: tuple[float, float]  # (width, height) of a pixel in mm
    head_up: bool  # whether row 0 belongs at the bottom
    sides: str  # letters of the left, right, top and bottom


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

    Contours are solid for the ground truth and dashed for the prediction, with a colour for each class.
    """
    ct, pet = view.ct[plane.index], view.pet[plane.index]
    rows, columns = ct.shape
    width, height = columns * plane.edge[0], rows * plane.edge[1]
    layout: dict[str, Any] = {
        "origin": "lower" if plane.head_up else "upper",
        "extent": (0, width, 0, height) if plane.head_up else (0, width, height, 0),
        "interpolation": "bilinear",
    }
    if kind == "pet":
        axes.imshow(pet, cmap="gray", norm=suv, **layout)
    else:
        axes.imshow(ct, cmap="gray", vmin=CT_WINDOW[0], vmax=CT_WINDOW[1], **layout)
    if kind == "fused":
        opacity = 0.75 * np.sqrt(np.clip(suv(pet), 0, 1))
        axes.imshow(pet, cmap=PET_COLOURS, norm=suv, alpha=opacity, **layout)
    for side, labels in enumerate((view.truth, view.prediction)):
        _draw_contours(axes, labels[plane.index], plane.edge, side)
    axes.set_axis_off()
    letter: dict[str, Any] = {"color": "#ffd75e", "fontsize": 10, "ha": "center", "va": "center"}
    for text, (x, y) in zip(plane.sides, ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02)), strict=True):
        axes.text(x, y, text, transform=axes.transAxes, **letter)


def _draw_contours(axes: Axes, labels: NDArray[np.uint8], edge: tuple[float, float], side: int) -> None:
    """Contours of both classes of a slice, of the ground truth (side 0) or the prediction (1)."""
    x, y = ((np.arange(size) + 0.5) * mm for size, mm in zip(labels.shape[::-1], edge, strict=True))
    for name, label in CLASSES.items():
        mask = labels == label
        if mask.any() and not mask.all():
            style: Any = {"colors": COLOURS[name][side], "linestyles": [LINES[side]]}
            axes.contour(x, y, mask, [0.5], linewidths=1.6, **style)


def legend_lines() -> list[Line2D]:
    """A line for each class of ground truth and prediction."""
    return [
        Line2D([], [], label=f"{name} {SIDES[side]}", lw=1.8, color=COLOURS[name][side], ls=LINES[side])
        for name in CLASSES
        for side in range(2)
    ]
