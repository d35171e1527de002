"""The figures of a report: still pictures of a case, and plots as SVG."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hnseg.data.resample import NO_SUV, label_to_grid, to_grid
from hnseg.evaluation.figures import LesionFinding, Scan
from hnseg.evaluation.score import MM3_PER_ML, CaseScore, Options
from hnseg.imaging.grid import Grid, bounds
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.slices import COLOURS, ON_WHITE, PET_GREY, PET_WINDOW, draw_slice, planes
from hnseg.metrics.lesions import overlapping_lesions
from hnseg.metrics.official import CLASSES, GTVN

PANEL = 2.3  # inches
DPI = 120
LESION_MM = 120.0  # edge of the part of a slice around a lesion
MIP_MM = 3.0  # PET does not resolve less
FUSED = {"fused": ""}
KINDS = {"ct": "CT", "pet": "PET", "fused": "CT and PET"}
MAPS = {"entropy": "Entropy", "mutual_information": "Mutual information"}
COLUMNS = 3  # of panels


@dataclass(frozen=True)
class Picture:
    """An image for an HTML page: its bytes as a data URI, what it shows, and the caption."""

    uri: str
    alt: str
    caption: str


def lesion_picture(scan: Scan, finding: LesionFinding, kinds: Mapping[str, str] | None = None) -> Picture:
    """An axial slice through a finding: CT, PET, both and the maps that there are, or the kinds asked for.

    Args:
        scan: The case.
        finding: The lesion.
        kinds: Titles by kind of `draw_slice`.
    """
    view = scan.view(finding.voxel, LESION_MM)
    maps = {f"probability_{finding.name}": f"{finding.name} probability", **MAPS}
    kinds = kinds or KINDS | {name: title for name, title in maps.items() if name in view.maps}
    axial = next(planes(view))
    rows, columns = view.ct[axial.index].shape
    ratio = rows * axial.edge[1] / (columns * axial.edge[0])
    across, down = min(len(kinds), COLUMNS), -(-len(kinds) // COLUMNS)
    size = PANEL * across, down * (PANEL * ratio + 0.28 * any(kinds.values()))
    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    for place, (kind, title) in enumerate(kinds.items(), start=1):
        axes = figure.add_subplot(down, across, place)
        draw_slice(axes, view, axial, kind)
        axes.set_title(title, color="white", fontsize=11)
    if not scan.labelled:
        volumes = f"{finding.predicted_ml:.2f} ml"
    elif not finding.predicted_ml:
        volumes = f"missed: true {finding.truth_ml:.2f} ml"
    elif not finding.truth_ml:
        volumes = f"false: predicted {finding.predicted_ml:.2f} ml"
    else:
        volumes = f"true {finding.truth_ml:.2f} ml, predicted {finding.predicted_ml:.2f} ml"
    title = f"{finding.name}, {volumes}"
    alt = f"{axial.title} through {title}, with contours"
    return Picture(_jpeg(figure), alt, f"{title}. {axial.title}")


def maximum_projection(scan: Scan) -> Picture:
    """The PET seen from the front: the highest SUV along each line from front to back, and the masks."""
    low, high = bounds(scan.ct)
    size = np.maximum(np.round((high - low) / MIP_MM).astype(int), 1)
    grid = Grid.centred((low + high) / 2, size.tolist(), [MIP_MM] * 3)
    suv = to_grid(scan.pet, grid, fill=NO_SUV).max(axis=1)
    width, height = size[0] * MIP_MM, size[2] * MIP_MM
    figure = Figure(figsize=(2.6, min(2.6 * height / width, 6.0)), layout="constrained")
    axes = figure.subplots()
    shade: dict[str, Any] = {"cmap": PET_GREY, "vmin": PET_WINDOW[0], "vmax": PET_WINDOW[1]}
    axes.imshow(suv, origin="lower", extent=(0, width, 0, height), **shade)
    for side, (mask, style) in enumerate(((scan.truth, "solid"), (scan.prediction, "dashed"))):
        labels = label_to_grid(mask, grid)
        for name, label in CLASSES.items():
            seen = (labels == label).any(axis=1)
            if seen.any() and not seen.all():
                x, z = ((np.arange(n) + 0.5) * MIP_MM for n in seen.shape[::-1])
                axes.contour(x, z, seen, [0.5], colors=ON_WHITE[name][side], linestyles=style, linewidths=1.2)
    axes.set_axis_off()
    caption = f"PET maximum-intensity projection from the front; black is SUV {PET_WINDOW[1]:g} and more"
    return Picture(_jpeg(figure), f"{caption}, with the contours of the masks", caption)


def _jpeg(figure: Figure) -> str:
    """A drawn figure as a JPEG data URI."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    quality = {"quality": 80, "optimize": True}
    figure.savefig(file, format="jpeg", dpi=DPI, facecolor=figure.get_facecolor(), pil_kwargs=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


SIZE = (4.6, 3.6)  # inches
LIMITS = 1.96  # standard deviations: 95 % of differences, if they are normal


def agreement(name: str, cases: Sequence[CaseScore]) -> Picture | None:
    """Bland-Altman plot of predicted against ground-truth volume; None without a case that has either."""
    overlaps = [case.counts.overlaps[name] for case in cases]
    pairs = np.array([(o.prediction, o.truth) for o in overlaps if o.dice is not None]) / MM3_PER_ML
    if not len(pairs):
        return None
    differences, means = pairs[:, 0] - pairs[:, 1], pairs.mean(axis=1)
    bias, spread = limits_of_agreement(differences)

    def draw(axes: Axes) -> None:
        axes.plot(means, differences, "o", markersize=4, alpha=0.7)
        axes.axhline(bias, color="black")
        for sign in (-1, 1):
            axes.axhline(bias + sign * spread, color="black", linestyle="dashed")
        axes.set(xlabel="mean of both volumes (ml)", ylabel="predicted - true (ml)")

    words = (
        f"{name} volume, predicted minus true, of {len(pairs)} cases: mean {bias:.2f} ml, "
        f"95 % limits of agreement {bias - spread:.2f} to {bias + spread:.2f} ml"
    )
    return _svg(draw, f"{name} volume agreement", words)


def limits_of_agreement(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Bias, and distance of the 95 % limits of agreement from it (Bland & Altman, Lancet 1986;327:307)."""
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return float(np.mean(differences)), LIMITS * spread


Measured = Mapping[str, Sequence[tuple[str, float]]]  # (centre, value) of each case, by class


def by_centre(measured: Measured, measure: str) -> Picture:
    """A value of each case by class and centre, with the median of each group."""
    centres = sorted({centre for values in measured.values() for centre, _ in values})
    figure = Figure(figsize=(6.4, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(measured.items()):
        colour = COLOURS[name][0]
        for place, centre in enumerate(centres):
            group = np.array([value for own, value in values if own == centre])
            if len(group):
                x = place + 0.4 * number - 0.2
                spread = np.linspace(-0.1, 0.1, len(group)) if len(group) > 1 else np.zeros(1)
                axes.plot(x + spread, group, "o", color=colour, markersize=4, alpha=0.6)
                axes.hlines(np.median(group), x - 0.15, x + 0.15, color=colour, linewidth=2.5)
        axes.plot([], [], "o", color=colour, label=name)
    axes.set_xticks(range(len(centres)), [centre or "no centre" for centre in centres])
    axes.set(ylabel=measure, xlim=(-0.5, max(len(centres), 1) - 0.5))
    axes.set_ylim(bottom=-0.03, top=1.03 if measure == "Dice" else None)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return _as_svg(figure, f"{measure} of each case by class and centre; a bar is the median")


def best_overlaps(scan: Scan) -> list[tuple[float, float]]:
    """(ml, IoU) of every ground-truth node: its volume, and its largest overlap with a predicted node."""
    truth, prediction = scan.masks()
    overlaps = overlapping_lesions(prediction == GTVN, truth == GTVN)
    best = np.zeros(len(overlaps.truth_size))
    np.maximum.at(best, overlaps.truth, overlaps.iou)
    volumes = overlaps.truth_size * voxel_ml(scan.ct.GetSpacing())
    return list(zip(volumes.tolist(), best.tolist(), strict=True))


def sizes(nodes: Sequence[tuple[float, float]]) -> Picture | None:
    """Overlap of every ground-truth node with its best prediction, by volume; None without nodes."""
    if not nodes:
        return None
    (volumes, ious), threshold = np.array(nodes).T, Options().threshold

    def draw(axes: Axes) -> None:
        axes.semilogx(volumes, ious, "o", markersize=4, alpha=0.7)
        axes.axhline(threshold, color="black", linestyle="dashed")
        axes.set(xlabel="true volume (ml)", ylabel="IoU with the best prediction", ylim=(-0.03, 1.03))

    found = int((ious > threshold).sum())
    words = (
        f"GTVn by size: {found} of {len(nodes)} true nodes overlap a prediction by an IoU above {threshold:g}"
    )
    return _svg(draw, "GTVn by size", words)


BINS = 10
# Below it lies most of a scan, certain background: with it every map would look calibrated.
LEAST = 0.01


class Calibration:
    """How often voxels of a class are true, by predicted probability, over cases.

    Attributes:
        counts: (3, BINS), in bins of equal width: the voxels with a probability of `LEAST` or more, the sum
            of their probabilities, and the number that the ground truth labels as the class.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((3, BINS))

    def add(self, probability: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Count a case, both (z, y, x) on one grid."""
        counted = probability >= LEAST
        values = probability[counted].astype(np.float64)
        bins = np.minimum((values * BINS).astype(int), BINS - 1)
        self.counts += [np.bincount(bins, weights, BINS) for weights in (None, values, truth[counted])]

    @property
    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean probability and share of voxels of the class, of the bins that hold any voxel."""
        voxels, probability, true = self.counts[:, self.counts[0] > 0]
        return probability / voxels, true / voxels

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean distance of both, bins weighted by voxels."""
        voxels, probability, true = self.counts
        return float(np.abs(probability - true).sum() / voxels.sum())


def reliability(name: str, calibration: Calibration) -> Picture | None:
    """Share of voxels of the class by predicted probability; None without a map."""
    if not calibration.counts.any():
        return None

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="grey", linestyle="dashed", label="calibrated")
        axes.plot(*calibration.curve, "o-", label=name)
        axes.set(xlabel="probability", ylabel="share of voxels that are true", xlim=(0, 1), ylim=(0, 1))
        axes.legend()

    words = (
        f"{name}: expected calibration error {calibration.error:.3f} over "
        f"{int(calibration.counts[0].sum())} voxels with a probability of 1 % or more"
    )
    return _svg(draw, f"{name} calibration", words)


def _svg(draw: Callable[[Axes], None], title: str, words: str) -> Picture:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    draw(axes)
    return _as_svg(figure, words)


def _as_svg(figure: Figure, words: str) -> Picture:
    FigureCanvasSVG(figure)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    uri = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(uri, words, words)
