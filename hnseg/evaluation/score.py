"""Folders of predicted and ground-truth masks → the official scores, case by case and for the cohort."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from hnseg.errors import HnsegError, few
from hnseg.evaluation.statistics import Interval, score_intervals
from hnseg.imaging.case import EXTENSIONS, case_files, center_of, read_cases, stem
from hnseg.imaging.images import read_label, read_mask, to_array
from hnseg.imaging.masks import foreground_box
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
        missing: Cases with ground truth and without prediction, left out.
    """

    options: Options
    cases: list[CaseScore]
    extra: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

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
                "missing_predictions": self.missing,
            },
            "cases": {case.case_id: case.to_json(self.options.empty) for case in self.cases},
        }


def evaluate(
    truth: Path, predictions: Path, options: Options | None = None, *, allow_missing: bool = False
) -> CohortScore:
    """Score every case that has a ground-truth mask.

    Args:
        truth: Folder of CASE.nii.gz (or .nii, .mha), or a cohort: in the HECKTOR layout, CASE/CASE.nii.gz,
            or a CSV with labels.
        predictions: Folder of the same, on the grids of the ground truth.
        options: By default the challenge's.
        allow_missing: Leave out cases without prediction, such as those not segmented yet.

    Raises:
        HnsegError: No case, predictions missing or on another grid, labels other than 0, 1 and 2, files that
            cannot be read.
    """
    true, predicted = _find_truth(truth), find_masks(predictions)
    if not true:
        raise HnsegError(
            f"{truth}: no case to score; expected CASE.nii.gz or CASE/CASE.nii.gz in it, or a CSV's labels"
        )
    missing = [case_id for case_id in true if case_id not in predicted]
    if missing and (not allow_missing or len(missing) == len(true)):
        raise HnsegError(
            f"{predictions}: no prediction for {len(missing)} of {len(true)} cases ({few(missing)}); "
            "predict them, or score the others with --allow-missing"
        )
    options = options or Options()

    def score(case_id: str) -> CaseScore:
        return _score_case(case_id, *true[case_id], predicted[case_id], options)

    # Reading and distance transforms release Python's lock, so threads do; a whole-body case takes 1.3 GB.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        there = [case_id for case_id in true if case_id in predicted]
        cases = list(track(pool.map(score, there), "Scoring", total=len(there), console=Console(stderr=True)))
    return CohortScore(options, cases, extra=sorted(predicted.keys() - true.keys()), missing=missing)


def _score_case(case_id: str, truth: Path, center: str, prediction: Path, options: Options) -> CaseScore:
    true = read_label(truth)
    predicted, spacing = read_mask(prediction, true), true.GetSpacing()
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
        center=center,
        counts=CaseCounts(gtvp, gtvn, detections[options.connectivity, options.matching]),
        detections=detections,
        distances={name: surface_distance(*pair, spacing) for name, pair in pairs.items()},
    )


def _find_truth(truth: Path) -> dict[str, tuple[Path, str]]:
    """The ground-truth masks of a folder, or the labels of a CSV, and the centres, by case."""
    if truth.is_dir():
        return {case_id: (mask, center_of(case_id)) for case_id, mask in find_masks(truth).items()}
    return {case.case_id: (case.label, case.center) for case in read_cases(truth) if case.label}


def find_masks(folder: Path) -> dict[str, Path]:
    """List the masks in a folder by case: CASE.nii.gz (or .nii, .mha) or, HECKTOR layout, CASE/CASE.nii.gz.

    Raises:
        HnsegError: No folder of that name, or two masks of one case.
    """
    if not folder.is_dir():
        raise HnsegError(f"{folder}: no such folder; give the folder that holds CASE.nii.gz")
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        mask = case_files(path).get("label") if path.is_dir() else path
        if mask is None or mask.name.startswith(".") or not mask.name.endswith(EXTENSIONS):
            continue
        case_id = stem(mask)
        if case_id in masks:
            raise HnsegError(f"{mask}: case {case_id} also has {masks[case_id]}; keep one of them")
        masks[case_id] = mask
    return masks


def crop_to_labels(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crop both maps (z, y, x) to the box that holds every label: scans are large, lesions small."""
    box = foreground_box(prediction | truth) or (slice(0, 1),) * 3
    return prediction[box], truth[box]
