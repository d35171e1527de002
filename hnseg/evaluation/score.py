"""Folders of predicted and true masks → the official scores, case by case and for the cohort."""

import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.ndimage import find_objects

from hnseg.cases import case_files, center_of, read_cases
from hnseg.errors import HnsegError, few
from hnseg.evaluation.report import CaseScore, Options, Report, print_report, write_json
from hnseg.images import EXTENSIONS, read_label, same_grid, to_array
from hnseg.metrics import (
    CLASSES,
    CONNECTIVITIES,
    GTVN,
    MATCHINGS,
    Connectivity,
    EmptyPolicy,
    Matching,
    count_case,
    match,
    overlapping_lesions,
    surface_distance,
)

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
