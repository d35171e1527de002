"""One picture a case: truth and prediction on CT, and on CT with PET, in three planes."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hnseg.cases import Case
from hnseg.evaluation.slices import NAMES, PET_COLOURS, Kind, draw_slice, legend_lines, planes, suv_scale
from hnseg.evaluation.view import load_view
from hnseg.files import replacing
from hnseg.metrics import CaseCounts

WIDTH = 13.0  # inches


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
    through_focus = list(planes(view))
    widths = [plane.edge[0] * view.ct[plane.index].shape[1] for plane in through_focus]
    heights = [plane.edge[1] * view.ct[plane.index].shape[0] for plane in through_focus]
    inches_per_mm = (WIDTH - 1.0) / sum(widths)  # an inch for the PET scale, one for title and legend
    size = (WIDTH, 2 * max(heights) * inches_per_mm + 1.1)
    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, 3, width_ratios=widths)
    suv = suv_scale(view.pet)
    kinds: tuple[Kind, Kind] = ("ct", "fused")
    for row, kind in zip(rows, kinds, strict=True):
        for axes, plane in zip(row, through_focus, strict=True):
            draw_slice(axes, view, plane, kind, suv)
            axes.set_title(plane.title if kind == "ct" else "", color="white", fontsize=10)
    figure.suptitle(_title(case.case_id, view.counts), color="white", fontsize=14)
    _add_scale(figure, rows[1].tolist(), suv)
    lines = legend_lines(view.truth is not None)
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, labelcolor="white")
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="black")
    return out


def _add_scale(figure: Figure, row: list[Axes], suv: Normalize) -> None:
    bar = figure.colorbar(ScalarMappable(suv, PET_COLOURS), ax=row, pad=0.01, fraction=0.02)
    bar.set_label("PET (SUV)", color="white")
    bar.ax.tick_params(colors="white")


def _title(case_id: str, counts: CaseCounts | None) -> str:
    if counts is None:
        return f"{case_id}   (truth not known)"
    dice = {title: getattr(counts, name).dice for name, title in NAMES.items()}
    shown = [
        f"{title} in neither" if value is None else f"{title} Dice {value:.2f}"
        for title, value in dice.items()
    ]
    return "   ".join([case_id, *shown])
