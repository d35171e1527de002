"""The still pictures of a case, as data URIs with the words that say what they show."""

import base64
import io
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hnseg.data.resample import NO_SUV, label_to_grid, to_grid
from hnseg.evaluation.slices import (
    COLOURS,
    NAMES,
    Kind,
    Plane,
    draw_slice,
    legend_lines,
    planes,
    suv_scale,
)
from hnseg.evaluation.slices import Index, View
from hnseg.evaluation.view import Scan
from hnseg.geometry import Grid, bounds
from hnseg.metrics import CLASSES
from hnseg.report.findings import Finding

WIDTH = 10.0  # inches
DPI = 80
MIP_MM = 3.0  # PET does not resolve less
MIP_SUV = 10.0  # black in the projection
KINDS: tuple[tuple[Kind, str], ...] = (("ct", "CT"), ("pet", "PET"), ("fused", "CT and PET"))


@dataclass(frozen=True)
class Picture:
    """An image for an HTML page: its bytes as a data URI, what it shows, and the caption."""

    uri: str
    alt: str
    caption: str


def lesion_picture(view: View, start: Index, finding: Finding) -> Picture:
    """CT, PET and both, axial through a finding.

    Args:
        view: Around all lesions.
        start: The voxel (x, y, z) of the whole scan at which it begins.
        finding: The lesion.
    """
    x, y, z = np.subtract(finding.voxel, start).tolist()
    axial = next(planes(replace(view, focus=(x, y, z), focus_mm=finding.place)))
    title = f"{NAMES[finding.name]}, {_volumes(finding)}"
    alt = f"{axial.title} through {title}: CT, PET and both, with contours"
    return Picture(_draw_slices(view, axial), alt, f"{title}. {axial.title}")


def maximum_projection(scan: Scan) -> Picture:
    """The PET seen from the front: the highest SUV along each line from front to back, and the masks."""
    low, high = bounds(scan.ct)
    size = np.maximum(np.round((high - low) / MIP_MM).astype(int), 1)
    grid = Grid.centred((low + high) / 2, size.tolist(), [MIP_MM] * 3)
    suv = to_grid(scan.pet, grid, fill=NO_SUV).max(axis=1)
    width, height = size[0] * MIP_MM, size[2] * MIP_MM
    figure = Figure(figsize=(4.0, min(4.0 * height / width, 9.0)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(suv, cmap="gray_r", vmin=0, vmax=MIP_SUV, origin="lower", extent=(0, width, 0, height))
    sides = [scan.truth, scan.prediction]
    for mask, kind in ((mask, kind) for kind, mask in enumerate(sides) if mask is not None):
        labels = label_to_grid(mask, grid)
        for name, label in CLASSES.items():
            seen = (labels == label).any(axis=1)
            if seen.any() and not seen.all():
                x, z = ((np.arange(n) + 0.5) * MIP_MM for n in seen.shape[::-1])
                # The dark tint for both: light ones do not show on white.
                style = ("solid", "dashed")[kind]
                axes.contour(x, z, seen, [0.5], colors=COLOURS[name][0], linestyles=style, linewidths=1.2)
    axes.set_axis_off()
    caption = f"PET maximum-intensity projection from the front; black is SUV {MIP_SUV:g} and more"
    return Picture(jpeg(figure), f"{caption}, with the contours of the masks", caption)


def jpeg(figure: Figure) -> str:
    """A drawn figure as a JPEG data URI."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    quality = {"quality": 80, "optimize": True}
    figure.savefig(file, format="jpeg", dpi=DPI, facecolor=figure.get_facecolor(), pil_kwargs=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _draw_slices(view: View, plane: Plane) -> str:
    rows, columns = view.ct[plane.index].shape
    ratio = rows * plane.edge[1] / (columns * plane.edge[0])
    figure = Figure(figsize=(WIDTH, WIDTH / 3 * ratio + 0.8), facecolor="black", layout="constrained")
    suv = suv_scale(view.pet)
    for axes, (kind, title) in zip(figure.subplots(1, 3), KINDS, strict=True):
        draw_slice(axes, view, plane, kind, suv)
        scale = "" if kind == "ct" else f", SUV 0 to {suv.vmax:.1f}"
        axes.set_title(f"{title}{scale}", color="white", fontsize=9)
    lines = legend_lines(view.truth is not None)
    figure.legend(
        handles=lines, loc="outside lower center", ncols=4, frameon=False, labelcolor="white", fontsize=8
    )
    return jpeg(figure)


def _volumes(finding: Finding) -> str:
    if finding.truth_ml is None:
        return f"predicted {finding.predicted_ml:.2f} ml"
    if not finding.predicted_ml:
        return f"missed: true {finding.truth_ml:.2f} ml"
    if not finding.truth_ml:
        return f"false: predicted {finding.predicted_ml:.2f} ml"
    return f"true {finding.truth_ml:.2f} ml, predicted {finding.predicted_ml:.2f} ml"
