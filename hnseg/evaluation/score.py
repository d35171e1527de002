"""Folders of predicted and true masks → the official scores, case by case and for the cohort."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from scipy.ndimage import find_objects

from hnseg.errors import HnsegError, few
from hnseg.evaluation.statistics import SCORES, TITLES, Interval, Score, score_intervals
from hnseg.files import replacing, table_console
from hnseg.imaging.case import case_files, center_of, read_cases
from hnseg.imaging.images import EXTENSIONS, read_label, same_grid, to_array
from hnseg.metrics import (
    CLASSES,
    CONNECTIVITIES,
    EMPTY_POLICIES,
    GTVN,
    MATCHINGS,
    CaseCounts,
    Connectivity,
    Detections,
    EmptyPolicy,
    Matching,
    Scores,
    SurfaceDistance,
    aggregate,
    case_score_2026,
    count_case,
    f1_agg,
    match,
    overlapping_lesions,
    surface_distance,
)

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Options:
    """What the organisers leave open, see `hnseg.metrics`."""

    empty: EmptyPolicy = "one"
    connectivity: Connectivity = 26
    matching: Matching = "greedy"
    threshold: float = 0.30


@dataclass(frozen=True)
class CaseScore:
    """One patient's scores; `detections` and `distances` go beyond the official ones.

    Attributes:
        case_id: Name of the case.
        center: Its centre, '' where the name tells none.
        counts: The patient's share of the official scores.
        detections: GTVn lesions found, false and missed under every connectivity and matching.
        distances: Surface distances in mm by class name, None where a side is empty.
    """

    case_id: str
    center: str
    counts: CaseCounts
    detections: Mapping[tuple[Connectivity, Matching], Detections]
    distances: Mapping[str, SurfaceDistance | None]

    def to_json(self, empty: EmptyPolicy) -> dict[str, Any]:
        """Plain values: volumes in ml, distances in mm, None where something is not defined."""
        values: dict[str, Any] = {"center": self.center}
        for name, distance in self.distances.items():
            overlap = getattr(self.counts, name)
            values |= {
                f"{name}_dice": overlap.dice,
                f"{name}_ml": overlap.truth / MM3_PER_ML,
                f"{name}_predicted_ml": overlap.prediction / MM3_PER_ML,
                f"{name}_hd95_mm": distance and distance.hd95,
                f"{name}_mean_distance_mm": distance and distance.mean,
            }
        return values | self.counts.lesions._asdict() | {"score_2026": case_score_2026(self.counts, empty)}


@dataclass(frozen=True)
class Report:
    """The scores of a cohort.

    Attributes:
        options: How it was scored.
        cases: One entry a patient, sorted by case.
        extra: Predictions without truth, left out.
    """

    options: Options
    cases: list[CaseScore]
    extra: list[str] = field(default_factory=list)

    @property
    def official(self) -> Scores:
        """The official scores of all cases."""
        return self._aggregate(self.cases)

    @property
    def centers(self) -> dict[str, Scores]:
        """The same for each centre alone, sorted by name; '' holds the cases that name none."""
        names = sorted({case.center for case in self.cases})
        return {name: self._aggregate(c for c in self.cases if c.center == name) for name in names}

    @cached_property
    def intervals(self) -> dict[Score, Interval]:
        """The official scores with their 95 % intervals over patients."""
        return score_intervals(self.cases, empty=self.options.empty)

    @property
    def f1_spread(self) -> dict[tuple[Connectivity, Matching], float]:
        """GTVn F1agg under every connectivity and matching, at the threshold of `options`."""
        return {
            (connectivity, matching): f1_agg(case.detections[connectivity, matching] for case in self.cases)
            for connectivity in CONNECTIVITIES
            for matching in MATCHINGS
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, free of NaN."""
        spread = {f"{matching}_{connectivity}": f1 for (connectivity, matching), f1 in self.f1_spread.items()}
        return {
            "official": {
                **self.official,
                "intervals": {score: asdict(interval) for score, interval in self.intervals.items()},
                "gtvn_f1_agg_by_option": spread,
                "centers": self.centers,
                "options": asdict(self.options),
                "extra_predictions": self.extra,
            },
            "cases": {case.case_id: case.to_json(self.options.empty) for case in self.cases},
        }

    def _aggregate(self, cases: Iterable[CaseScore]) -> Scores:
        return aggregate((case.counts for case in cases), empty=self.options.empty)


def write_json(report: Report, path: Path) -> None:
    """Write `{"official": {…}, "cases": {CASE: {…}}}`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the official scores, per centre too, and what depends on choices the organisers leave open."""
    console = console or table_console()
    official = report.official
    policies = official["gtvp_dsc_by_empty_policy"]
    by_policy = ", ".join(f"{policy} {_number(policies[policy])}" for policy in EMPTY_POLICIES)
    console.print(_score_table(report))
    console.print(_interval_table(report))
    console.print(
        f"GTVp in neither mask: {official['gtvp_both_empty']} of {official['cases']} patients\n"
        f"GTVp DSC by policy for these: {by_policy} (above: {report.options.empty})"
    )
    console.print(_spread_table(report))
    if report.extra:
        names = escape(", ".join(report.extra))
        console.print(f"[yellow]Warning:[/] {len(report.extra)} predictions without truth left out: {names}")


def _score_table(report: Report) -> Table:
    table = Table(title="Official scores (HECKTOR 2025, task 1)")
    table.add_column("")
    for heading in ("Cases", "GTVp DSC", "GTVn DSCagg", "GTVn F1agg", "TP", "FP", "FN"):
        table.add_column(heading, justify="right")

    def add(name: str, scores: Scores, **style: Any) -> None:
        ratios = (_number(scores[key]) for key in ("gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg"))
        table.add_row(
            name, str(scores["cases"]), *ratios, *(str(scores[k]) for k in ("tp", "fp", "fn")), **style
        )

    add("All", report.official, style="bold", end_section=True)
    if any(report.centers):
        for name, scores in report.centers.items():
            add(escape(name) or "(no centre)", scores)
    return table


def _interval_table(report: Report) -> Table:
    table = Table(title="95 % intervals over patients")
    for heading in ("", "Score", "From", "To", "Note"):
        table.add_column(heading, justify="right" if heading in ("Score", "From", "To") else "left")
    for score in SCORES:
        interval = report.intervals[score]
        ends = (_number(number) for number in (interval.value, interval.low, interval.high))
        table.add_row(TITLES[score], *ends, interval.note)
    return table


def _spread_table(report: Report) -> Table:
    table = Table(title=f"GTVn F1agg, IoU threshold {report.options.threshold:g}")
    table.add_column("Connectivity", justify="right")
    for matching in MATCHINGS:
        table.add_column(matching, justify="right")
    for connectivity in CONNECTIVITIES:
        f1 = (_number(report.f1_spread[connectivity, matching]) for matching in MATCHINGS)
        table.add_row(str(connectivity), *f1)
    return table


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


__all__ = [
    "Report",
    "crop_to_labels",
    "evaluate",
    "find_masks",
    "find_truth",
    "print_report",
    "read_masks",
    "score_case",
    "write_json",
]


def evaluate(
    truth: Path,
    predictions: Path,
    *,
    empty: EmptyPolicy = "one",
    connectivity: Connectivity = 26,
    matching: Matching = "greedy",
    threshold: float = 0.30,
    workers: int | None = None,
) -> Report:
    """Score every case that has a true mask.

    Args:
        truth: Folder of CASE.nii.gz (or .nii, .mha), or a cohort: in the HECKTOR layout, CASE/CASE.nii.gz,
            or a CSV with labels.
        predictions: Folder of the same, on the truth's grids.
        empty: What a patient without a class on either side scores.
        connectivity: Of GTVn lesions, see `hnseg.metrics.label_lesions`.
        matching: Of GTVn lesions, see `hnseg.metrics.match`.
        threshold: IoU above which a GTVn lesion counts as found.
        workers: Cases at a time; by default one a processor, at most four, for a whole-body
            case takes 1.3 GB.

    Raises:
        HnsegError: No case, predictions missing or on another grid, labels other than 0, 1 and 2, files that
            cannot be read.
    """
    true, predicted = find_truth(truth), find_masks(predictions)
    if not true:
        raise HnsegError(
            f"{truth}: no case to score; expected CASE.nii.gz or CASE/CASE.nii.gz in it, or a CSV's labels"
        )
    if missing := [case_id for case_id in true if case_id not in predicted]:
        raise HnsegError(
            f"{predictions}: no prediction for {len(missing)} of {len(true)} cases ({few(missing)}); "
            f"predict them, or take them out of {truth}"
        )
    options = Options(empty, connectivity, matching, threshold)

    def score(case_id: str) -> CaseScore:
        return _score_files(case_id, predicted[case_id], true[case_id], options)

    # Reading and distance transforms release Python's lock, so threads do.
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 4)) as pool:
        scores = _with_progress(pool.map(score, true), total=len(true))
    return Report(options, scores, extra=sorted(predicted.keys() - true.keys()))


class Truth(NamedTuple):
    """A case's true mask, and its centre ('' where nothing tells)."""

    mask: Path
    center: str


def find_truth(truth: Path) -> dict[str, Truth]:
    """List the true masks by case: those of a folder, as `find_masks` does, or the labels of a CSV.

    Raises:
        HnsegError: As `find_masks`, or as `read_cases`.
    """
    if truth.is_dir():
        return {case_id: Truth(mask, center_of(case_id)) for case_id, mask in find_masks(truth).items()}
    return {case.case_id: Truth(case.label, case.center) for case in read_cases(truth) if case.label}


def find_masks(folder: Path) -> dict[str, Path]:
    """List the masks in a folder by case: CASE.nii.gz (or .nii, .mha) or, HECKTOR layout, CASE/CASE.nii.gz.

    CASE__CT.nii.gz and CASE__PT.nii.gz are scans, and CASE__ANYTHING.nii.gz beside a mask of CASE is
    something else of that case; otherwise `__` is part of the case's name.

    Raises:
        HnsegError: No such folder, or two masks of one case.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise HnsegError(f"{folder}: {what}; give the folder that holds CASE.nii.gz")
    found = [(case_id, mask) for case_id, mask in map(_mask_of, sorted(folder.iterdir())) if mask]
    names = {case_id for case_id, _ in found}
    masks: dict[str, Path] = {}
    for case_id, mask in found:
        if mask.parent == folder and _is_of_another(case_id, names):
            continue
        if case_id in masks:
            raise HnsegError(f"{mask}: case {case_id} also has {masks[case_id]}; keep one of them")
        masks[case_id] = mask
    return masks


def _is_of_another(name: str, cases: Collection[str]) -> bool:
    """Whether a file is a scan, or something else of a case that has its mask."""
    case_id, _, what = name.rpartition("__")
    return what in ("CT", "PT") or case_id in cases


def score_case(
    case_id: str,
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    spacing: tuple[float, ...],
    options: Options,
    center: str,
) -> CaseScore:
    """Score one patient.

    Args:
        case_id: Name of the case.
        prediction: Labels (z, y, x).
        truth: Labels on the same grid.
        spacing: (x, y, z) in mm.
        options: What the organisers leave open.
        center: The case's, '' where nothing tells.
    """
    prediction, truth = crop_to_labels(prediction, truth)
    detections = {}
    for connectivity in CONNECTIVITIES:
        overlaps = overlapping_lesions(prediction == GTVN, truth == GTVN, connectivity)
        for matching in MATCHINGS:
            detections[connectivity, matching] = match(overlaps, matching, options.threshold)
    return CaseScore(
        case_id=case_id,
        center=center,
        counts=count_case(
            prediction,
            truth,
            spacing,
            connectivity=options.connectivity,
            matching=options.matching,
            threshold=options.threshold,
        ),
        detections=detections,
        distances={
            name: surface_distance(prediction == label, truth == label, spacing)
            for name, label in CLASSES.items()
        },
    )


def read_masks(prediction: Path, truth: Path) -> tuple[sitk.Image, sitk.Image]:
    """Both masks of a case.

    Raises:
        HnsegError: Files that cannot be read, labels other than 0, 1 and 2, or two grids.
    """
    predicted, true = read_label(prediction), read_label(truth)
    if not same_grid(predicted, true):
        raise HnsegError(
            f"{prediction}: its grid ({_describe(predicted)}) is not that of {truth} ({_describe(true)}); "
            "resample it onto the CT's grid"
        )
    return predicted, true


def crop_to_labels(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut both maps (z, y, x) to the box that holds every label: scans are large, lesions small."""
    (box,) = find_objects(((prediction | truth) > 0).view(np.uint8)) or [(slice(0, 1),) * 3]
    return prediction[box], truth[box]


def _score_files(case_id: str, prediction: Path, truth: Truth, options: Options) -> CaseScore:
    predicted, true = read_masks(prediction, truth.mask)
    labels = to_array(predicted), to_array(true)
    return score_case(case_id, *labels, true.GetSpacing(), options, truth.center)


def _mask_of(path: Path) -> tuple[str, Path | None]:
    """The case a folder's entry belongs to, and its mask if it is or holds one."""
    if path.name.startswith("."):
        return "", None
    if path.is_dir():
        return path.name, case_files(path).get("label")
    for extension in EXTENSIONS:
        case_id = path.name.removesuffix(extension)
        if case_id != path.name:
            return case_id, path
    return "", None


def _describe(image: sitk.Image) -> str:
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    size = " x ".join(str(n) for n in image.GetSize())
    spacing = " x ".join(f"{mm:.4g}" for mm in image.GetSpacing())
    origin = ", ".join(f"{mm:.5g}" for mm in image.GetOrigin())
    return f"{size} voxels of {spacing} mm, origin {origin}, {orientation}"


def _with_progress(scores: Iterable[Any], total: int) -> list[Any]:
    return list(track(scores, description="Scoring", total=total, console=Console(stderr=True)))
