"""The figures of a report, as SVG: volume agreement, calibration, found nodes by size."""

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hnseg.evaluation.report import MM3_PER_ML, CaseScore
from hnseg.evaluation.slices import NAMES
from hnseg.report.calibration import Calibration
from hnseg.report.pictures import Picture

SIZE = (4.6, 3.6)  # inches
LIMITS = 1.96  # standard deviations: 95 % of differences, if they are normal


def agreement(name: str, cases: Sequence[CaseScore]) -> Picture | None:
    """Bland and Altman's plot of predicted against true volume; None without a case that has either."""
    overlaps = [getattr(case.counts, name) for case in cases]
    pairs = np.array([(o.prediction, o.truth) for o in overlaps if not o.empty]) / MM3_PER_ML
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
        f"{NAMES[name]} volume, predicted minus true, of {len(pairs)} cases: mean {bias:.2f} ml, "
        f"95 % limits of agreement {bias - spread:.2f} to {bias + spread:.2f} ml"
    )
    return _svg(draw, f"{NAMES[name]} volume agreement", words)


def limits_of_agreement(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Bland and Altman's bias, and how far the 95 % limits lie from it (Lancet 1986; 327: 307-310)."""
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return float(np.mean(differences)), LIMITS * spread


def reliability(name: str, calibration: Calibration) -> Picture:
    """How often voxels of a probability are of the class, beside the diagonal of a calibrated one."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="grey", linestyle="dashed", label="calibrated")
        axes.plot(*calibration.curve, "o-", label=NAMES[name])
        axes.set(xlabel="probability", ylabel="share of voxels that are true", xlim=(0, 1), ylim=(0, 1))
        axes.legend()

    words = (
        f"{NAMES[name]}: expected calibration error {calibration.error:.3f} over "
        f"{int(calibration.voxels.sum())} voxels with a probability of 1 % or more"
    )
    return _svg(draw, f"{NAMES[name]} calibration", words)


def sizes(nodes: Sequence[tuple[float, float]], threshold: float) -> Picture | None:
    """Overlap of every true node with its best prediction, by volume; None without nodes."""
    if not nodes:
        return None
    volumes, ious = np.array(nodes).T

    def draw(axes: Axes) -> None:
        axes.semilogx(volumes, ious, "o", markersize=4, alpha=0.7)
        axes.axhline(threshold, color="black", linestyle="dashed")
        axes.set(xlabel="true volume (ml)", ylabel="IoU with the best prediction", ylim=(-0.03, 1.03))

    found = int((ious > threshold).sum())
    words = (
        f"GTVn by size: {found} of {len(nodes)} true nodes overlap a prediction by an IoU above {threshold:g}"
    )
    return _svg(draw, "GTVn by size", words)


def _svg(draw: Callable[[Axes], None], title: str, words: str) -> Picture:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    draw(axes)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    uri = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(uri, words, words)
