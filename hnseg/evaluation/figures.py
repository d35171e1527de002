"""Pictures of a case: the view around its largest lesion, with contours of ground truth and prediction."""

from dataclasses import dataclass, replace
from pathlib import Path

import cc3d
import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hnseg.errors import HnsegError, few
from hnseg.evaluation.score import find_truth
from hnseg.files import replacing
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.images import read_image, read_label, same_grid, to_array
from hnseg.imaging.slices import PET_COLOURS, Index, Kind, View, draw_slice, legend_lines, planes, suv_scale
from hnseg.imaging.suv import read_pet
from hnseg.metrics.official import CLASSES, count_case

VIEW_MM = 240.0  # wide enough for a neck with both sides and for the skull base down to the clavicles


@dataclass(frozen=True)
class Scan:
    """A case's volumes, turned to LPS: x runs to the patient's left, y to the back, z to the head.

    Attributes:
        ct: In HU.
        pet: In SUV, on a grid of its own.
        truth: Ground-truth labels on the CT's grid, if there are any.
        prediction: Labels on the CT's grid.
    """

    ct: sitk.Image
    pet: sitk.Image
    truth: sitk.Image | None
    prediction: sitk.Image

    def masks(self) -> list[NDArray[np.uint8]]:
        """Labels (z, y, x) of the ground truth, if there is one, and of the prediction."""
        return [to_array(mask) for mask in (self.truth, self.prediction) if mask is not None]

    def focus(self) -> Index:
        """The voxel (x, y, z) in the middle of the largest lesion, ground truth first, else PET's maximum."""
        return _focus(self.masks()) or _maximum(self.pet, self.ct)

    def view(self) -> View:
        """The part of the scan within a cube of `VIEW_MM` around the focus."""
        focus = self.focus()
        return self.crop(*_window(self.ct, focus), focus)

    def crop(self, start: Index, size: Index, focus: Index) -> View:
        """The part of the scan that begins at the voxel `start`, all three (x, y, z) on the CT's grid."""
        ct = sitk.RegionOfInterest(self.ct, size, start)
        within = (focus[0] - start[0], focus[1] - start[1], focus[2] - start[2])
        return View(
            ct=to_array(ct),
            pet=to_array(sitk.Resample(self.pet, ct, sitk.Transform(), sitk.sitkLinear, 0.0)),
            truth=None if self.truth is None else to_array(sitk.RegionOfInterest(self.truth, size, start)),
            prediction=to_array(sitk.RegionOfInterest(self.prediction, size, start)),
            spacing=ct.GetSpacing(),
            focus=within,
            focus_mm=ct.TransformIndexToPhysicalPoint(within),
        )


def cases_to_draw(truth: Path, images: Path | None) -> list[Case]:
    """The cases that have a ground-truth mask, with that mask as label.

    Args:
        truth: Folder of CASE.nii.gz, or a cohort.
        images: The cohort whose CT and PET are drawn; by default `truth`.

    Raises:
        HnsegError: A ground-truth mask without CT and PET.
    """
    masks, remedy = find_truth(truth), "name their cohort with --images"
    try:
        cases = {case.case_id: case for case in read_cases(images or truth, strict=False)}
    except HnsegError as error:
        if images:
            raise
        raise HnsegError(f"{truth}: no CT and PET to draw on; {remedy}") from error
    if missing := sorted(masks.keys() - cases.keys()):
        raise HnsegError(f"{images or truth}: no CT and PET of {few(missing)}; {remedy}")
    return [replace(cases[case_id], label=truth.mask) for case_id, truth in masks.items()]


def load_scan(case: Case, prediction: Path) -> Scan:
    """Read a case and its prediction and turn them to LPS.

    Raises:
        HnsegError: A file that cannot be read, or a mask that is not on the CT's grid.
    """
    ct = read_image(case.ct)

    def read_mask(path: Path) -> sitk.Image:
        mask = read_label(path)
        if not same_grid(mask, ct):
            raise HnsegError(f"{path}: is not on the grid of {case.ct}; resample it onto the CT's grid")
        return _to_lps(mask)

    truth = None if case.label is None else read_mask(case.label)
    return Scan(_to_lps(ct), _to_lps(read_pet(case)), truth, read_mask(prediction))


def _to_lps(image: sitk.Image) -> sitk.Image:
    return sitk.DICOMOrient(image, "LPS")


def _focus(masks: list[NDArray[np.uint8]]) -> Index | None:
    """Index (x, y, z) of the voxel nearest the middle of the largest lesion of the first mask with any."""
    for mask in filter(np.any, masks):
        largest = (cc3d.largest_k(mask == label, k=1, connectivity=26) for label in CLASSES.values())
        voxels = max(map(np.argwhere, largest), key=len)
        z, y, x = voxels[np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()].tolist()
        return x, y, z
    return None


def _maximum(pet: sitk.Image, ct: sitk.Image) -> Index:
    """Index (x, y, z) in `ct` of the PET maximum, moved into the CT where it lies outside."""
    values = to_array(pet)
    z, y, x = (int(i) for i in np.unravel_index(values.argmax(), values.shape))
    index = ct.TransformPhysicalPointToIndex(pet.TransformIndexToPhysicalPoint((x, y, z)))
    x, y, z = (min(max(i, 0), size - 1) for i, size in zip(index, ct.GetSize(), strict=True))
    return x, y, z


def _window(ct: sitk.Image, focus: Index) -> tuple[Index, Index]:
    """Start and size (x, y, z) of a cube of `VIEW_MM` around the focus, moved and cut to fit the scan."""
    start, size = [], []
    for index, spacing, available in zip(focus, ct.GetSpacing(), ct.GetSize(), strict=True):
        length = min(max(round(VIEW_MM / spacing), 1), available)
        start.append(min(max(index - length // 2, 0), available - length))
        size.append(length)
    return (start[0], start[1], start[2]), (size[0], size[1], size[2])


WIDTH = 13.0  # inches


def overlay(case: Case, prediction: Path, out: Path) -> Path:
    """Draw a case through its largest lesion, as radiologists look at it: the patient's right on the left.

    Contours are solid for the ground truth and dashed for the prediction, with a colour for each class.

    Args:
        case: CT, PET and, if there is one, label; any orientation.
        prediction: Label map on the CT's grid.
        out: The PNG to write, whole or not at all.

    Returns:
        `out`.
    """
    scan = load_scan(case, prediction)
    view = scan.view()
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
    figure.suptitle(_title(case.case_id, scan), color="white", fontsize=14)
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


def _title(case_id: str, scan: Scan) -> str:
    if scan.truth is None:
        return f"{case_id}   (no ground truth)"
    truth, prediction = scan.masks()
    overlaps = count_case(prediction, truth, scan.ct.GetSpacing()).overlaps
    dice = (f"{n} in neither" if o.dice is None else f"{n} Dice {o.dice:.2f}" for n, o in overlaps.items())
    return "   ".join([case_id, *dice])
