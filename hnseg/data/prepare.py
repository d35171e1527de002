"""Cases → cached stage volumes, cut where their labels, a drawn head or a prediction place the ROI."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.console import Console

from hnseg.card import STUDY, Sampling, Stage, plain
from hnseg.data.cache import CacheError, StageVolume, entry_folder, is_whole, write_entry
from hnseg.data.resample import MODALITIES, sample_images, sample_label
from hnseg.errors import HnsegError
from hnseg.files import digest, digest_file, replacing
from hnseg.imaging.audit import check_case
from hnseg.imaging.case import Case, mask_file
from hnseg.imaging.grid import Grid
from hnseg.imaging.images import digest_voxels, read_label, read_mask, to_array
from hnseg.imaging.masks import positions, voxel_ml
from hnseg.imaging.placement import PlacedRoi, place, place_grid
from hnseg.imaging.suv import read_scan
from hnseg.processes import map_cases


def needs_head(stage: Stage) -> bool:
    """Whether a stage is placed by head masks or learns them."""
    return stage.name == "localiser" or stage.placement == "below_head"


def placing_mask(case: Case, stage: Stage, ct: sitk.Image, masks: Path | None) -> sitk.Image | None:
    """A case's head mask (1, whichever value an editor gave it) if the stage needs it, or coarse prediction.

    None without `masks`: the case's own label places its ROI.

    Raises:
        HnsegError: The mask does not exist, or is not on the CT's grid.
    """
    if masks is None and not needs_head(stage):
        return None
    path = None if masks is None else mask_file(masks, case.case_id)
    if path is not None and path.exists():
        mask = read_mask(path, ct)
        return mask > 0 if needs_head(stage) else mask
    if needs_head(stage):
        raise HnsegError(
            f"{case.case_id}: no head mask {path or 'since data.head_labels is not set'}; hnseg "
            "propose-heads makes some for the localiser, which then labels the rest (hnseg infer "
            "last_stage=localiser out=HEADS)"
        )
    raise HnsegError(
        f"{case.case_id}: no coarse prediction {path}; make them with models that have not seen the case "
        "(hnseg infer last_stage=coarse out_of_fold=true out=COARSE)"
    )


def place_roi(
    case: Case, stage: Stage, ct: sitk.Image, pet: sitk.Image, mask: sitk.Image | None, masks: Path | None
) -> PlacedRoi:
    """Places a training case's ROI: by labels and manual heads as they are, by predictions as at inference
    with `decision.fallback=chain`.

    `mask` is a head mask, lesion labels or a coarse prediction, and `masks` its folder, None for the case's
    own labels. Heads that hnseg infer labelled lie beside its cases.csv.
    """
    if needs_head(stage):
        manual = masks is None or not (masks / "cases.csv").exists()
        return place(stage, ct, pet, mask, manual=manual)
    if masks is not None:
        empty = mask is not None and not to_array(mask).any()
        return place(stage, ct, pet, _searched(masks, case.case_id) if empty else mask)
    return PlacedRoi(place_grid(stage, ct, mask))


def ml_outside(label: sitk.Image, grid: Grid) -> dict[str, float]:
    """Volume of each class that the ROI does not hold, in ml, by label."""
    low, high = grid.corners.min(axis=0), grid.corners.max(axis=0)
    array, points = to_array(label), positions(label)
    values, lost = array[array > 0], np.any((points < low) | (points > high), axis=1)
    return {
        str(value): float((lost & (values == value)).sum() * voxel_ml(label.GetSpacing()))
        for value in np.unique(values)
    }


def _searched(masks: Path, case_id: str) -> sitk.Image | None:
    """The ROI in which hnseg infer looked for coarse lesions, empty; None without its record, OUT/CASE.json.

    The brightest PET is sought in it, not in a bladder far below.
    """
    path = masks / f"{case_id}.json"
    if not path.exists():
        return None
    try:
        (roi,) = json.loads(path.read_bytes())["roi"]
        grid = Grid.from_dict(roi)
    except (ValueError, LookupError, TypeError) as error:
        raise HnsegError(
            f"{path}: not the record of a coarse prediction; make it and the mask anew with "
            "hnseg infer last_stage=coarse out_of_fold=true overwrite=true"
        ) from error
    return grid.image(np.zeros(grid.shape, np.uint8))


def digest_volumes(volumes: Iterable[StageVolume]) -> str:
    """Digest of the cases' arrays and where these lie in the patient, whatever the order of the cases."""
    return digest(sorted((volume.case_id, _digest_volume(volume)) for volume in volumes))


def _digest_volume(volume: StageVolume) -> str:
    """Computed once, then kept beside the arrays, which never change."""
    kept = volume.folder / "content.txt"
    if kept.exists() and (known := kept.read_text()):
        return known
    files = [digest_file(volume.folder / f"{name}.npy") for name in volume.arrays]
    content = digest([volume.meta["grid"], volume.meta["margin"], files], 64)
    with suppress(HnsegError), replacing(kept) as temporary:  # the cache may be another user's
        temporary.write_text(content)
    return content


# Raise when an entry would come out differently for the same inputs.
FORMAT = 7


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
    """Brings cases onto a stage's grid, in parallel, reusing what has not changed.

    Args:
        cases: Cases with labels (the localiser needs head masks instead).
        stage: The stage.
        cache: Folder of the cache; entries of different stages and settings live side by side.
        sampling: What the volumes are cut from.
        modalities: Those that the stage's networks see.
        heads: Folder of head masks CASE.nii.gz: the localiser's labels, and what places the coarse ROI.
        coarse: Folder of coarse predictions CASE.nii.gz that place the fine ROI as at inference with
            `decision.fallback=chain`; None centres it on the true lesions.
        margin_mm: Anatomy kept around the ROI for jitter, mm.
        workers: Processes; all cores by default.

    Returns:
        One volume a case, in the order given.

    Raises:
        HnsegError: Cases that cannot be used, each by name and reason, while the others are kept.
    """
    masks = heads if needs_head(stage) else coarse
    folder = stage_folder(cache, stage, sampling, modalities, masks, margin_mm)
    volumes = [StageVolume(case.case_id, entry_folder(folder, case, masks)) for case in cases]
    missing = [n for n, volume in enumerate(volumes) if not is_whole(volume.folder)]
    if not missing:
        return volumes
    settings: dict[str, Any] = {"sampling": sampling, "modalities": modalities, "margin_mm": margin_mm}
    work = partial(_prepare_or_reason, stage=stage, folder=folder, masks=masks, **settings)
    title, most = f"Preparing {stage.name} volumes", os.cpu_count() or 1
    prepared = map_cases(work, [cases[n] for n in missing], title, workers=workers, most=most)
    failures = []
    for number, volume in zip(missing, prepared, strict=True):
        if isinstance(volume, str):
            failures.append(volume)
        else:
            volumes[number] = volume  # whose files may have changed meanwhile
    if failures:
        raise HnsegError(
            f"{len(failures)} of {len(cases)} cases cannot be used for the {stage.name} stage: "
            + "; ".join(failures)
            + " (mend them, or leave them out with data.exclude=[CASE,...])"
        )
    _report_outside(volumes, stage)
    return volumes


def stage_folder(
    cache: Path,
    stage: Stage,
    sampling: Sampling,
    modalities: Sequence[str],
    masks: Path | None,
    margin_mm: float,
) -> Path:
    """What holds the entries of a stage and its settings; `masks` place its ROI, None: the labels."""
    settings = {"stage": plain(stage), "sampling": plain(sampling), "margin": margin_mm, "format": FORMAT}
    settings["modalities"] = list(modalities)
    if masks is not None:  # a case whose mask is missing has no entry, though it may have one without masks
        settings["masks"] = str(masks.resolve())
    return cache / f"{stage.name}-{digest(settings)}"


def _report_outside(volumes: Sequence[StageVolume], stage: Stage) -> None:
    """Says how much of the lesions the ROIs do not hold: no network can find it."""
    console, of_all = Console(stderr=True), f"of {len(volumes)} cases"
    for fallback, count in Counter(volume.meta["fallback"] for volume in volumes).items():
        if fallback:
            console.print(f"{count} {of_all}: ROI by fallback {fallback}", highlight=False)
    outside = [sum(volume.meta["ml_outside_roi"].values()) for volume in volumes]
    if cut := sum(ml > 0 for ml in outside):
        what = f"{'/'.join(stage.classes)} outside the {stage.name} ROI, {sum(outside):.1f} ml in all"
        console.print(f"{cut} {of_all} have {what}", highlight=False)


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
    """Writes one case's entry FOLDER/CASE/KEY, whole or not at all.

    Args as for `prepare`; `masks` are heads for the stages that need them, else coarse predictions, and None
    places the ROI by the labels.

    Raises:
        HnsegError: The case cannot be used.
    """
    target = entry_folder(folder, case, masks)  # before they are read: they may change meanwhile
    ct, pet = read_scan(case)
    lesions = None if case.label is None else read_label(case.label)
    if errors := [issue.text for issue in check_case(ct, pet, lesions) if issue.level == "error"]:
        raise HnsegError(f"{case.case_id}: {errors[0]}")
    mask = placing_mask(case, stage, ct, masks)
    label = mask if stage.name == "localiser" else lesions
    if label is None:
        raise HnsegError(
            f"{case.case_id}: no label image {case.case_id}.nii.gz to train the {stage.name} stage on"
        )
    if (most := int(sitk.GetArrayViewFromImage(label).max())) > len(stage.classes):
        raise HnsegError(
            f"{case.case_id}: its labels reach {most}, and stage.classes=[{','.join(stage.classes)}] names "
            f"{len(stage.classes)}; name a class for each label"
        )
    placed = place_roi(case, stage, ct, pet, lesions if mask is None else mask, masks)
    margin = stage.voxels(margin_mm)
    grid = placed.grid.padded(margin)
    arrays: dict[str, NDArray[Any]] = {
        **sample_images(sampling, ct, pet, grid, modalities=modalities, antialias=stage.antialias)
    }
    if sampling.source == "study" and "ct" in arrays:
        arrays["ct"] = arrays["ct"].astype(np.int16)  # whole HU
    arrays["label"] = sample_label(sampling, label, ct, grid)
    meta = {
        "grid": grid.to_dict(),
        "margin": list(margin),
        "ml_outside_roi": ml_outside(label, placed.grid),
        "fallback": placed.fallback,
        "ct_digest": digest_voxels(ct),
    }
    write_entry(arrays, meta, target)
    return StageVolume(case.case_id, target)
