"""A case with its masks: its lesions, and its picture through the largest with contours of both masks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cc3d
import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hnseg.files import replacing
from hnseg.imaging.case import Case, stem
from hnseg.imaging.images import read_image, read_mask, to_array
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.slices import PET_GREY, PET_WINDOW, Index, Kind, View, draw_slice, legend_lines, planes
from hnseg.imaging.suv import read_pet
from hnseg.metrics.lesions import label_lesions
from hnseg.metrics.official import CLASSES, Overlap

VIEW_MM = 240.0  # wide enough for a neck with both sides and for the skull base down to the clavicles
WIDTH = 13.0  # inches


@dataclass(frozen=True)
class Scan:
    """A case's volumes, turned to LPS: x runs to the patient's left, y to the back, z to the head.

    Attributes:
        ct: In HU.
        pet: In SUV, on a grid of its own.
        truth: Ground-truth labels on the CT's grid, all 0 where there is no ground truth.
        prediction: Labels on the CT's grid.
        labelled: Whether there is a ground truth.
        maps: Probabilities and uncertainty on the CT's grid, by the name of their file.
    """

    ct: sitk.Image
    pet: sitk.Image
    truth: sitk.Image
    prediction: sitk.Image
    labelled: bool = True
    maps: Mapping[str, sitk.Image] = field(default_factory=dict)

    @classmethod
    def read(cls, case: Case, prediction: Path, maps: Path | None = None) -> "Scan":
        """Read a case, its prediction and a folder of maps, all on the CT's grid, and turn them to LPS."""
        ct, found = read_image(case.ct), sorted(maps.iterdir()) if maps and maps.is_dir() else []
        predicted = read_mask(prediction, ct)
        truth = read_mask(case.label, ct) if case.label else predicted * 0
        return cls(
            ct=_turned(ct),
            pet=_turned(read_pet(case)),
            truth=_turned(truth),
            prediction=_turned(predicted),
            labelled=case.label is not None,
            maps={stem(path): _turned(read_image(path)) for path in found},
        )

    def masks(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Labels (z, y, x) of the ground truth and of the prediction."""
        return to_array(self.truth), to_array(self.prediction)

    def focus(self) -> Index:
        """The voxel (x, y, z) in the middle of the largest lesion, ground truth first, else PET's maximum."""
        if lesions := find_lesions(self):
            return max(lesions, key=lambda lesion: (lesion.truth_ml, lesion.predicted_ml)).voxel
        values = to_array(self.pet)
        z, y, x = (int(i) for i in np.unravel_index(values.argmax(), values.shape))
        index = self.ct.TransformPhysicalPointToIndex(self.pet.TransformIndexToPhysicalPoint((x, y, z)))
        x, y, z = (min(max(i, 0), size - 1) for i, size in zip(index, self.ct.GetSize(), strict=True))
        return x, y, z

    def view(self, focus: Index, width_mm: float) -> View:
        """The part of the scan within a cube around a voxel (x, y, z), moved and cut to fit the CT."""
        start, size = [], []
        for index, spacing, available in zip(focus, self.ct.GetSpacing(), self.ct.GetSize(), strict=True):
            length = min(max(round(width_mm / spacing), 1), available)
            start.append(min(max(index - length // 2, 0), available - length))
            size.append(length)

        def cut(image: sitk.Image) -> sitk.Image:
            return sitk.RegionOfInterest(image, size, start)

        ct = cut(self.ct)
        x, y, z = np.subtract(focus, start).tolist()
        return View(
            ct=to_array(ct),
            pet=to_array(sitk.Resample(self.pet, ct, sitk.Transform(), sitk.sitkLinear, 0.0)),
            truth=to_array(cut(self.truth)),
            prediction=to_array(cut(self.prediction)),
            spacing=ct.GetSpacing(),
            focus=(x, y, z),
            focus_mm=self.ct.TransformIndexToPhysicalPoint(focus),
            maps={name: to_array(cut(image)) for name, image in self.maps.items()},
        )


def _turned(image: sitk.Image) -> sitk.Image:
    return sitk.DICOMOrient(image, "LPS")


@dataclass(frozen=True)
class LesionFinding:
    """A connected component of the union of ground truth and prediction, of one class.

    Attributes:
        name: The class.
        voxel: (x, y, z) on the CT's grid: the one nearest its mean voxel.
        truth_ml: Ground-truth volume in it.
        predicted_ml: Predicted volume in it.
    """

    name: str
    voxel: Index
    truth_ml: float
    predicted_ml: float


def find_lesions(scan: Scan) -> list[LesionFinding]:
    """The findings of a scan, class by class, the largest first."""
    masks, ml = scan.masks(), voxel_ml(scan.ct.GetSpacing())
    findings = []
    for name, label in CLASSES.items():
        sides = [mask == label for mask in masks]
        components, count = label_lesions(np.logical_or.reduce(sides))
        found = []
        for number, box in enumerate(cc3d.statistics(components)["bounding_boxes"][1 : count + 1], start=1):
            inside = components[box] == number
            truth, predicted = (float((side[box] & inside).sum()) * ml for side in sides)
            voxels = np.argwhere(inside)
            middle = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
            z, y, x = (int(i) + int(part.start) for i, part in zip(middle, box, strict=True))
            found.append(LesionFinding(name, (x, y, z), truth, predicted))
        findings += sorted(found, key=lambda finding: -max(finding.truth_ml, finding.predicted_ml))
    return findings


def overlay(case: Case, prediction: Path, out: Path) -> None:
    """Draw a case through its largest lesion, as radiologists look at it: the patient's right on the left.

    Contours are solid for the ground truth and dashed for the prediction, with a colour for each class.

    Args:
        case: CT, PET and, where known, label, in any orientation.
        prediction: Label map on the CT's grid.
        out: The PNG to write, whole or not at all.
    """
    scan = Scan.read(case, prediction)
    view = scan.view(scan.focus(), VIEW_MM)
    through_focus = list(planes(view))
    widths = [plane.edge[0] * view.ct[plane.index].shape[1] for plane in through_focus]
    heights = [plane.edge[1] * view.ct[plane.index].shape[0] for plane in through_focus]
    inches_per_mm = (WIDTH - 1.0) / sum(widths)  # an inch for the PET scale, one for title and legend
    size = (WIDTH, 2 * max(heights) * inches_per_mm + 1.1)
    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, 3, width_ratios=widths)
    kinds: tuple[Kind, Kind] = ("ct", "pet")
    for row, kind in zip(rows, kinds, strict=True):
        for axes, plane in zip(row, through_focus, strict=True):
            draw_slice(axes, view, plane, kind)
            axes.set_title(plane.title if kind == "ct" else "", color="white", fontsize=10)
    figure.suptitle(_title(case.case_id, scan), color="white", fontsize=14)
    scale = ScalarMappable(Normalize(*PET_WINDOW), PET_GREY)
    bar = figure.colorbar(scale, ax=rows[1].tolist(), pad=0.01, fraction=0.02)
    bar.set_label("PET (SUV)", color="white")
    bar.ax.tick_params(colors="white")
    style = {"ncols": 4, "frameon": False, "labelcolor": "white"}
    figure.legend(handles=legend_lines(labelled=scan.labelled), loc="outside lower center", **style)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="black")


def _title(case_id: str, scan: Scan) -> str:
    truth, prediction = scan.masks()
    if not scan.labelled:
        ml = voxel_ml(scan.ct.GetSpacing())
        sizes = (f"{n} {np.count_nonzero(prediction == c) * ml:.1f} ml" for n, c in CLASSES.items())
        return "   ".join([case_id, *sizes])
    dice = {n: Overlap.of(prediction == c, truth == c, 1.0).dice for n, c in CLASSES.items()}
    words = (f"{n} in neither" if d is None else f"{n} Dice {d:.2f}" for n, d in dice.items())
    return "   ".join([case_id, *words])
