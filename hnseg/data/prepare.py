"""Cases → cached stage volumes.

The cache holds geometry only: CT in HU (int16), PET in SUV (float32, where the stage's networks see it) and
labels (uint8) on the stage's grid, with a margin around the ROI (the authors' twice sampled volumes hold
scaled float32 instead).
Windows of the study and enhancement can change without preparing again.
What a case was made from is hashed into the path of its entry; a changed file or stage makes another one.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from hnseg.cases import Case
from hnseg.checks import check_case
from hnseg.data.cache import CacheError, StageVolume, digest, entry_folder, is_whole, write_entry
from hnseg.data.roi import ml_outside, needs_head, place_roi, read_mask
from hnseg.data.sampling import MODALITIES, STUDY, Sampling
from hnseg.errors import HnsegError
from hnseg.files import require_room
from hnseg.images import read_label
from hnseg.pool import make_pool
from hnseg.stage import Stage
from hnseg.suv import read_scan

# Raise when an entry would come out differently for the same inputs.
FORMAT = 5

_console = Console(stderr=True)


def prepare(
    cases: Sequence[Case],
    stage: Stage,
    cache: Path,
    *,
    sampling: Sampling = STUDY,
    modalities: Sequence[str] = MODALITIES,
    heads: Path | None = None,
    coarse: Path | None = None,
    margin_mm: float = 0.0,
    workers: int | None = None,
) -> list[StageVolume]:
    """Brings cases onto a stage's grid, in parallel, reusing whatever has not changed.

    Args:
        cases: Cases with labels (the head stage needs head masks instead).
        stage: The stage.
        cache: Folder of the cache; entries of different stages and settings live side by side.
        sampling: What the volumes are cut from.
        modalities: Those that the stage's networks see.
        heads: Folder of head masks CASE.nii.gz: the head stage's labels, and what places the coarse ROI.
        coarse: Folder of coarse predictions CASE.nii.gz that place the fine ROI as at inference, with the
            same fallbacks; None centres it on the true lesions.
        margin_mm: Anatomy kept around the ROI for jitter, mm.
        workers: Processes; all cores by default.

    Returns:
        One volume a case, in the order given.

    Raises:
        HnsegError: Cases that cannot be used, each by name and reason, while the others are kept; the cache
            cannot be written; or a worker was killed, most likely for want of memory.
    """
    masks = heads if needs_head(stage) else coarse
    folder = cache / _folder_name(stage, sampling, modalities, masks, margin_mm)
    volumes = [StageVolume(case.case_id, entry_folder(folder, case, masks)) for case in cases]
    missing = [n for n, volume in enumerate(volumes) if not is_whole(volume.folder)]
    if not missing:
        return volumes
    require_room(
        folder,
        len(missing) * _entry_bytes(stage, sampling, modalities, margin_mm),
        f"{len(missing)} cases prepared for the {stage.name} stage",
        "make room, or choose another data.cache=FOLDER",
    )
    how: dict[str, Any] = {"stage": stage, "sampling": sampling, "modalities": modalities}
    work = partial(_prepare_or_reason, folder=folder, masks=masks, margin_mm=margin_mm, **how)
    made = _in_parallel(work, [cases[n] for n in missing], f"Preparing {stage.name} volumes", workers)
    if failures := [one for one in made if isinstance(one, str)]:
        raise HnsegError(
            f"{len(failures)} of {len(cases)} cases cannot be used for the {stage.name} stage: "
            + "; ".join(failures)
            + " (mend them, or leave them out with data.exclude=[CASE,...])"
        )
    # Files may have changed meanwhile: the entries are those that were made.
    there = {volume.case_id: volume for volume in (*volumes, *made) if isinstance(volume, StageVolume)}
    volumes = [there[case.case_id] for case in cases]
    _report_lost(volumes, stage)
    return volumes


def _folder_name(
    stage: Stage, sampling: Sampling, modalities: Sequence[str], masks: Path | None, margin_mm: float
) -> str:
    """Of what holds the entries of a stage and its settings."""
    made_by = {"stage": asdict(stage), "sampling": sampling.to_dict(), "margin": margin_mm, "format": FORMAT}
    if tuple(modalities) != MODALITIES:
        made_by["modalities"] = list(modalities)
    if masks is not None:  # a case whose mask is missing has no entry, though it may have one without masks
        made_by["masks"] = str(masks.resolve())
    return f"{stage.name}-{digest(made_by)}"


def _in_parallel(
    work: Callable[[Case], StageVolume | str], cases: Sequence[Case], title: str, workers: int | None
) -> list[StageVolume | str]:
    """What the work makes of each case, in processes, under a bar."""
    workers = min(workers or os.cpu_count() or 1, len(cases))
    try:
        with make_pool(workers) as pool:
            return list(track(pool.map(work, cases), title, len(cases), console=_console))
    except BrokenProcessPool as error:
        raise HnsegError(
            f"data.prepare_workers={workers}: a worker was killed, likely for memory; use fewer"
        ) from error


def _entry_bytes(stage: Stage, sampling: Sampling, modalities: Sequence[str], margin_mm: float) -> int:
    """Of an entry's arrays."""
    sides = (n + 2 * m for n, m in zip(stage.size, stage.voxels(margin_mm), strict=True))
    bytes_of = {"ct": 2 if sampling.source == "study" else 4, "pet": 4}
    return math.prod(sides) * (sum(bytes_of[name] for name in modalities) + 1)


def _report_lost(volumes: Sequence[StageVolume], stage: Stage) -> None:
    """Says how much of what is to be found the ROI does not hold: no network can find it there."""
    # Without what is each case's own: the SUV and the place where the ROI lies.
    taken = (v.meta["fallback"].split(",")[0] for v in volumes if v.meta["fallback"])
    for fallback, count in Counter(taken).items():
        _console.print(f"{count} of {len(volumes)} cases: {fallback}", highlight=False)
    lost = [sum(volume.meta["ml_outside_roi"].values()) for volume in volumes]
    cut = sum(ml > 0 for ml in lost)
    if cut:
        _console.print(
            f"{cut} of {len(volumes)} cases have {'/'.join(stage.classes)} outside the {stage.name} ROI, "
            f"{sum(lost):.1f} ml in all",
            highlight=False,
        )


def _prepare_or_reason(case: Case, **settings: Any) -> StageVolume | str:
    try:
        return prepare_case(case, **settings)
    except CacheError:
        raise
    except HnsegError as error:
        return str(error) if case.case_id in str(error) else f"{case.case_id}: {error}"


def prepare_case(
    case: Case,
    stage: Stage,
    folder: Path,
    *,
    sampling: Sampling = STUDY,
    modalities: Sequence[str] = MODALITIES,
    masks: Path | None = None,
    margin_mm: float = 0.0,
) -> StageVolume:
    """Writes one case's entry, whole or not at all.

    Args:
        case: The case.
        stage: The stage.
        folder: Where the entry goes, as FOLDER/CASE/KEY.
        sampling: What the volumes are cut from.
        modalities: Those that the entry holds.
        masks: Folder of the masks that place the ROI: heads for the stages that need them, else coarse
            predictions; None places it by the labels.
        margin_mm: Anatomy kept around the ROI, mm.

    Raises:
        HnsegError: The case cannot be used, and why.
        CacheError: The cache cannot be written.
    """
    target = entry_folder(folder, case, masks)  # before they are read: they may change meanwhile
    ct, pet = read_scan(case)
    lesions = None if case.label is None else read_label(case.label)
    faults = [f.text for f in check_case(ct, pet, lesions) if f.level == "error"]
    if faults:
        raise HnsegError(f"{case.case_id}: {faults[0]}")
    mask = read_mask(case, stage, ct, masks)
    label = mask if stage.name == "head" else lesions
    if label is None:
        raise HnsegError(
            f"{case.case_id}: no label image {case.case_id}.nii.gz to train the {stage.name} stage on"
        )
    if (most := int(sitk.GetArrayViewFromImage(label).max())) > len(stage.classes):
        raise HnsegError(
            f"{case.case_id}: its labels reach {most}, and stage.classes=[{','.join(stage.classes)}] names "
            f"{len(stage.classes)}; name a class for each label"
        )
    inner, fallback = place_roi(case, stage, ct, pet, lesions if mask is None else mask, masks)
    margin = stage.voxels(margin_mm)
    grid = inner.padded(margin)
    how: dict[str, Any] = {"modalities": modalities, "antialias": stage.antialias}
    arrays: dict[str, NDArray[Any]] = sampling.images(ct, pet, grid, **how)
    if sampling.source == "study" and "ct" in arrays:
        arrays["ct"] = arrays["ct"].astype(np.int16)  # whole HU
    arrays["label"] = sampling.label(label, ct, grid)
    meta = {
        "grid": grid.to_dict(),
        "margin": list(margin),
        "ml_outside_roi": ml_outside(label, inner),
        "fallback": fallback,
    }
    write_entry(arrays, meta, target)
    return StageVolume(case.case_id, target)
