"""Slices of CT, PET and both with the contours of ground truth and prediction, as every picture has them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hnseg.metrics.official import CLASSES

CT_WINDOW = (-160.0, 240.0)  # HU, soft tissue
# A fixed window in inverse grey, as PET is read; a window set by the brightest voxels would be the brain's.
PET_GREY, PET_WINDOW = "gray_r", (0.0, 10.0)  # SUV
PET_COLOURS = "hot"  # on CT
# Ground truth, and a lighter tint for the prediction: where both coincide, each shows beside the other.
COLOURS = {"GTVp": ("#0a9dff", "#8ff0ff"), "GTVn": ("#1fbf24", "#c8ff5a")}
# Light tints do not show on a PET in grey: there the prediction has a darker one.
ON_WHITE = {"GTVp": ("#0a9dff", "#08406b"), "GTVn": ("#1fbf24", "#0c5210")}
SIDES = ("ground truth", "prediction")
LINES: tuple[Any, Any] = ("solid", (0, (3, 2)))
MAP_COLOURS = "viridis"
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
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # probabilities, uncertainty


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


def draw_slice(axes: Axes, view: View, plane: Plane, kind: str) -> None:
    """One slice of CT, of PET (black is hot), or of CT with PET or a map of the view on it, and the contours.

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
        axes.imshow(pet, cmap=PET_GREY, vmin=PET_WINDOW[0], vmax=PET_WINDOW[1], **layout)
    else:
        axes.imshow(ct, cmap="gray", vmin=CT_WINDOW[0], vmax=CT_WINDOW[1], **layout)
    if kind == "fused":
        suv = Normalize(*PET_WINDOW, clip=True)
        axes.imshow(pet, cmap=PET_COLOURS, norm=suv, alpha=0.75 * np.sqrt(suv(pet)), **layout)
    if kind in view.maps:
        share = np.clip(view.maps[kind][plane.index], 0, 1)
        axes.imshow(share, cmap=MAP_COLOURS, vmin=0, vmax=1, alpha=0.8 * np.sqrt(share), **layout)
    for side, labels in enumerate((view.truth, view.prediction)):
        _draw_contours(axes, labels[plane.index], plane.edge, side, on_white=kind == "pet")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#6b7280")
    letter: dict[str, Any] = {"color": "#b45309" if kind == "pet" else "#ffd75e", "fontsize": 10}
    edges = ((0.01, 0.5), (0.99, 0.5), (0.5, 0.99), (0.5, 0.01))
    aligned = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for text, (x, y), (ha, va) in zip(plane.sides, edges, aligned, strict=True):
        axes.text(x, y, text, transform=axes.transAxes, ha=ha, va=va, **letter)


def _draw_contours(
    axes: Axes, labels: NDArray[np.uint8], edge: tuple[float, float], side: int, *, on_white: bool
) -> None:
    """Contours of both classes of a slice, of the ground truth (side 0) or the prediction (1)."""
    x, y = ((np.arange(size) + 0.5) * mm for size, mm in zip(labels.shape[::-1], edge, strict=True))
    for name, label in CLASSES.items():
        mask = labels == label
        if mask.any() and not mask.all():
            style: Any = {
                "colors": (ON_WHITE if on_white else COLOURS)[name][side],
                "linestyles": [LINES[side]],
            }
            axes.contour(x, y, mask, [0.5], linewidths=1.6, **style)


def legend_lines(*, labelled: bool = True) -> list[Line2D]:
    """A line for each class of ground truth, where there is one, and prediction."""
    return [
        Line2D([], [], label=f"{name} {SIDES[side]}", lw=1.8, color=COLOURS[name][side], ls=LINES[side])
        for name in CLASSES
        for side in range(0 if labelled else 1, 2)
    ]
