"""Folders of predicted and ground-truth masks → the official scores, case by case and for the cohort."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.ndimage import find_objects

from hnseg.errors import HnsegError, few
from hnseg.evaluation.statistics import Interval, score_intervals
from hnseg.files import print_table, table_console
from hnseg.imaging.case import case_files, center_of, read_cases
from hnseg.imaging.images import EXTENSIONS, read_label, same_grid, to_array
from hnseg.metrics.lesions import (
    CONNECTIVITIES,
    MATCHINGS,
    Connectivity,
    Detections,
    Matching,
    match,
    overlapping_lesions,
)
from hnseg.metrics.official import (
    CLASSES,
    EMPTY_POLICIES,
    SCORES,
    TITLES,
    CaseCounts,
    EmptyPolicy,
    Overlap,
    Score,
    Scores,
    aggregate,
    ratio_of_sums,
)
from hnseg.metrics.surface import SurfaceDistance, surface_distance

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Options:
    """What the organisers leave open.

    Attributes:
        empty: What a patient without a class on either side scores.
        connectivity: Of GTVn lesions, see `hnseg.metrics.lesions.label_lesions`.
        matching: Of GTVn lesions, see `hnseg.metrics.lesions.match`.
        threshold: IoU above which a GTVn lesion counts as found.
    """

    empty: EmptyPolicy = "one"
    connectivity: Connectivity = 26
    matching: Matching = "greedy"
    threshold: float = 0.30


@dataclass(frozen=True)
class CaseScore:
    """One patient's scores; `detections` and `distances` go beyond the official ones.

    Attributes:
        case_id: Name of the case.
        center: Its centre, '' where unknown.
        counts: The patient's share of the official scores.
        detections: GTVn lesions found, false and missed under every connectivity and matching.
        distances: Surface distances in mm by class, None where a side is empty.
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
            overlap, key = self.counts.overlaps[name], name.lower()
            values |= {
                f"{key}_dice": overlap.dice,
                f"{key}_ml": overlap.truth / MM3_PER_ML,
                f"{key}_predicted_ml": overlap.prediction / MM3_PER_ML,
                f"{key}_hd95_mm": distance and distance.hd95,
                f"{key}_mean_distance_mm": distance and distance.mean,
            }
        return values | self.counts.lesions._asdict() | {"score_2026": self.counts.score_2026(empty)}


@dataclass(frozen=True)
class CohortScore:
    """The scores of a cohort.

    Attributes:
        options: How it was scored.
        cases: One entry a patient, sorted by case.
        extra: Predictions without ground truth, left out.
    """

    options: Options
    cases: list[CaseScore]
    extra: list[str] = field(default_factory=list)

    @cached_property
    def official(self) -> Scores:
        """The official scores of all cases."""
        return aggregate((case.counts for case in self.cases), empty=self.options.empty)

    @cached_property
    def centers(self) -> dict[str, "CohortScore"]:
        """The cases of each centre, sorted by name; '' holds those of unknown centre."""
        return {
            name: CohortScore(self.options, [case for case in self.cases if case.center == name])
            for name in sorted({case.center for case in self.cases})
        }

    @cached_property
    def intervals(self) -> dict[Score, Interval]:
        """The official scores with their 95 % intervals over patients."""
        return score_intervals(self.cases, empty=self.options.empty)

    @property
    def f1_spread(self) -> dict[tuple[Connectivity, Matching], float]:
        """GTVn F1agg under every connectivity and matching, at the threshold of `options`."""
        return {
            (connectivity, matching): ratio_of_sums(
                case.detections[connectivity, matching].f1_terms for case in self.cases
            )
            for connectivity in CONNECTIVITIES
            for matching in MATCHINGS
        }

    def to_json(self) -> dict[str, Any]:
        """`{"official": {…}, "cases": {CASE: {…}}}` in plain values, free of NaN."""
        spread = {f"{matching}_{connectivity}": f1 for (connectivity, matching), f1 in self.f1_spread.items()}
        return {
            "official": {
                **self.official,
                "intervals": {score: asdict(interval) for score, interval in self.intervals.items()},
                "gtvn_f1_agg_by_option": spread,
                "centers": {name: center.official for name, center in self.centers.items()},
                "options": asdict(self.options),
                "extra_predictions": self.extra,
            },
            "cases": {case.case_id: case.to_json(self.options.empty) for case in self.cases},
        }


def print_scores(cohort: CohortScore, console: Console | None = None) -> None:
    """Print the official scores, per centre too, and what depends on choices the organisers leave open."""
    console = console or table_console()
    groups = {"All": cohort}
    if any(cohort.centers):
        groups |= {name or "(no centre)": center for name, center in cohort.centers.items()}
    print_table(
        ["", "Cases", *(TITLES[score] for score in SCORES[:3]), "TP", "FP", "FN"],
        [
            [
                name,
                str(group.official["cases"]),
                *(_number(group.official[score]) for score in SCORES[:3]),
                *(str(group.official[key]) for key in ("tp", "fp", "fn")),
            ]
            for name, group in groups.items()
        ],
        "Official scores (HECKTOR 2025, task 1)",
        console,
    )
    print_table(
        ["", "Score", "From", "To", "Note"],
        [
            [TITLES[score], *map(_number, (interval.value, interval.low, interval.high)), interval.note]
            for score, interval in cohort.intervals.items()
        ],
        "95 % intervals over patients",
        console,
    )
    policies = cohort.official["gtvp_dsc_by_empty_policy"]
    by_policy = ", ".join(f"{policy} {_number(policies[policy])}" for policy in EMPTY_POLICIES)
    console.print(
        f"GTVp in neither mask: {cohort.official['gtvp_both_empty']} of {len(cohort.cases)} patients\n"
        f"GTVp DSC by policy for these: {by_policy} (above: {cohort.options.empty})"
    )
    spread = cohort.f1_spread
    print_table(
        ["Connectivity", *MATCHINGS],
        [[str(c), *(_number(spread[c, matching]) for matching in MATCHINGS)] for c in CONNECTIVITIES],
        f"GTVn F1agg, IoU threshold {cohort.options.threshold:g}",
        console,
    )
    if cohort.extra:
        names = ", ".join(cohort.extra)
        warning = f"Warning: {len(cohort.extra)} predictions without ground truth left out: {names}"
        console.print(warning, style="yellow", markup=False)


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def evaluate(
    truth: Path,
    predictions: Path,
    *,
    empty: EmptyPolicy = "one",
    connectivity: Connectivity = 26,
    matching: Matching = "greedy",
    threshold: float = 0.30,
    workers: int | None = None,
) -> CohortScore:
    """Score every case that has a ground-truth mask.

    Args:
        truth: Folder of CASE.nii.gz (or .nii, .mha), or a cohort: in the HECKTOR layout, CASE/CASE.nii.gz,
            or a CSV with labels.
        predictions: Folder of the same, on the grids of the ground truth.
        empty: As in `Options`, and so the next three.
        connectivity: Of GTVn lesions.
        matching: Of GTVn lesions.
        threshold: IoU above which a GTVn lesion counts as found.
        workers: Threads; by default the number of cores, at most 4: a whole-body case takes 1.3 GB.

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
        return _score_case(case_id, predicted[case_id], true[case_id], options)

    # Reading and distance transforms release Python's lock, so threads do.
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 4)) as pool:
        results = pool.map(score, true)
        cases = list(track(results, "Scoring", total=len(true), console=Console(stderr=True)))
    return CohortScore(options, cases, extra=sorted(predicted.keys() - true.keys()))


def _score_case(case_id: str, prediction: Path, truth: "Truth", options: Options) -> CaseScore:
    predicted, true = read_masks(prediction, truth.mask)
    spacing = true.GetSpacing()
    labels, reference = crop_to_labels(to_array(predicted), to_array(true))
    pairs = {name: (labels == label, reference == label) for name, label in CLASSES.items()}
    detections = {}
    for connectivity in CONNECTIVITIES:
        overlaps = overlapping_lesions(*pairs["GTVn"], connectivity)
        for matching in MATCHINGS:
            detections[connectivity, matching] = match(overlaps, matching, options.threshold)
    gtvp, gtvn = (Overlap.of(*pair, prod(spacing)) for pair in pairs.values())
    return CaseScore(
        case_id=case_id,
        center=truth.center,
        counts=CaseCounts(gtvp, gtvn, detections[options.connectivity, options.matching]),
        detections=detections,
        distances={name: surface_distance(*pair, spacing) for name, pair in pairs.items()},
    )


class Truth(NamedTuple):
    """A case's ground-truth mask, and its centre ('' where unknown)."""

    mask: Path
    center: str


def find_truth(truth: Path) -> dict[str, Truth]:
    """List the ground-truth masks by case: those of a folder, see `find_masks`, or the labels of a CSV."""
    if truth.is_dir():
        return {case_id: Truth(mask, center_of(case_id)) for case_id, mask in find_masks(truth).items()}
    return {case.case_id: Truth(case.label, case.center) for case in read_cases(truth) if case.label}


def find_masks(folder: Path) -> dict[str, Path]:
    """List the masks in a folder by case: CASE.nii.gz (or .nii, .mha) or, HECKTOR layout, CASE/CASE.nii.gz.

    CASE__CT.nii.gz and CASE__PT.nii.gz are scans, and CASE__ANYTHING.nii.gz beside a mask of CASE is
    another file of that case; otherwise `__` is part of the case's name.

    Raises:
        HnsegError: No folder of that name, or two masks of one case.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise HnsegError(f"{folder}: {what}; give the folder that holds CASE.nii.gz")
    found = [(case_id, mask) for case_id, mask in map(_mask_of, sorted(folder.iterdir())) if mask]
    names = {case_id for case_id, _ in found}
    masks: dict[str, Path] = {}
    for case_id, mask in found:
        owner, _, suffix = case_id.rpartition("__")
        if mask.parent == folder and (suffix in ("CT", "PT") or owner in names):
            continue
        if case_id in masks:
            raise HnsegError(f"{mask}: case {case_id} also has {masks[case_id]}; keep one of them")
        masks[case_id] = mask
    return masks


def _mask_of(path: Path) -> tuple[str, Path | None]:
    """The case that a folder's entry belongs to, and its mask if it is or holds one."""
    if path.name.startswith("."):
        return "", None
    if path.is_dir():
        return path.name, case_files(path).get("label")
    for extension in EXTENSIONS:
        if path.name.endswith(extension):
            return path.name.removesuffix(extension), path
    return "", None


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


def _describe(image: sitk.Image) -> str:
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    size = " x ".join(str(n) for n in image.GetSize())
    spacing = " x ".join(f"{mm:.4g}" for mm in image.GetSpacing())
    origin = ", ".join(f"{mm:.5g}" for mm in image.GetOrigin())
    return f"{size} voxels of {spacing} mm, origin {origin}, {orientation}"


def crop_to_labels(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crop both maps (z, y, x) to the box that holds every label: scans are large, lesions small."""
    (box,) = find_objects(((prediction | truth) > 0).view(np.uint8)) or [(slice(0, 1),) * 3]
    return prediction[box], truth[box]
