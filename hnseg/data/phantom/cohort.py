"""Synthetic patients on disk, in the HECKTOR layout."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.console import Console
from rich.progress import track

from hnseg.data.phantom.anatomy import Patient, build, chin_height, table
from hnseg.data.phantom.lesions import draw_lesions
from hnseg.data.phantom.scanner import (
    NAMES,
    Size,
    draw_centre,
    draw_grids,
    head_mask,
    label_map,
    scan_ct,
    scan_pet,
)
from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.imaging.images import write_image
from hnseg.processes import make_pool

FIELDS = ("PatientID", "CenterID", "Age", "Gender", "Weight", "HPV Status")  # of clinical.csv


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic patient.

    Attributes:
        case_id: the centre's name and the case's number.
        center: the centre's name.
        ct: int16, HU.
        pet: float32, SUV, on a grid of its own.
        label: uint8 on the CT's grid: 0 background, 1 GTVp, 2 GTVn.
        head: uint8 on the CT's grid: 1 in the head, down to the chin.
        clinical: the patient's row of clinical.csv.
    """

    case_id: str
    center: str
    ct: sitk.Image
    pet: sitk.Image
    label: sitk.Image
    head: sitk.Image
    clinical: dict[str, str]


def make_case(
    index: int, seed: int, size: Size = "small", *, centers: Sequence[str] | None = None
) -> PhantomCase:
    """Case number `index` (from 0) of the cohort with this seed, whatever the cohort's length.

    Args:
        index: of the case.
        seed: of the cohort.
        size: "small" for tests and demonstrations, "full" for scans of the real size.
        centers: names of centres to take in turn; by default drawn in HECKTOR's proportions.
    """
    # Separate streams, so that the size of a scan does not change the patient in it.
    streams = np.random.SeedSequence([seed, index]).spawn(3)
    rng, grid_rng, noise_rng = (np.random.default_rng(stream) for stream in streams)
    centre = draw_centre(rng, centers, index)
    patient = Patient.draw(rng, centre.shift)
    lesions = draw_lesions(patient, rng)
    body = build(patient, [lesion.solid for lesion in lesions], rng)
    parts = [*table(patient), *body, *(part for lesion in lesions for part in lesion.parts)]
    grid, pet_grid = draw_grids(grid_rng, centre, patient, size)
    case_id = f"{centre.name}-{index + 1:03d}"
    return PhantomCase(
        case_id,
        centre.name,
        ct=grid.image(scan_ct(grid, parts, centre, noise_rng)),
        pet=pet_grid.image(scan_pet(pet_grid, parts, centre, noise_rng)),
        label=grid.image(label_map(grid, lesions)),
        head=grid.image(head_mask(grid, [p for p in body if p.name != "limb"], chin_height(patient))),
        clinical=_clinical(case_id, centre.name, patient, rng),
    )


def write_case(case: PhantomCase, root: Path) -> None:
    """Writes the four images of a case under `root`, each whole or not at all."""
    folder = root / case.case_id
    write_image(case.ct, folder / f"{case.case_id}__CT.nii.gz")
    write_image(case.pet, folder / f"{case.case_id}__PT.nii.gz")
    write_image(case.label, folder / f"{case.case_id}.nii.gz")
    write_image(case.head, root / "heads" / f"{case.case_id}.nii.gz")


def _clinical(case_id: str, center: str, patient: Patient, rng: np.random.Generator) -> dict[str, str]:
    age = int(np.clip(rng.normal(60, 10), 30, 88))
    gender = "M" if rng.random() < 0.8 else "F"
    hpv = str(rng.choice(["0", "1", ""], p=[0.15, 0.5, 0.35]))
    return dict(zip(FIELDS, (case_id, center, str(age), gender, str(patient.weight), hpv), strict=True))


RECORD = "phantom.json"
VERSION = 1  # of the phantom: raise it when the same seed gives other files
FULL_WORKERS = 4  # a whole-body case of full size takes 1.5 GB


def make_cohort(
    out: Path,
    cases: int,
    seed: int,
    *,
    size: Size = "small",
    workers: int | None = None,
    centers: Sequence[str] | None = None,
) -> None:
    """Writes a cohort in the HECKTOR layout, byte-identical for the same seed.

    Beside the cases lie `clinical.csv`, head masks in `heads/CASE.nii.gz` and `phantom.json`, which tells a
    phantom from a real cohort. The same cohort may be made again, or longer, in the same folder.

    Args:
        out: folder, new or empty or holding the same cohort.
        cases: how many.
        seed: not negative.
        size: "small" or "full".
        workers: processes; by default one per core, at most four at full size.
        centers: names of centres to take in turn; by default drawn in HECKTOR's proportions.

    Raises:
        HnsegError: an impossible number, an unknown centre or size, or a folder with other contents.
    """
    _check(cases, seed, size, centers)
    recipe: dict[str, object] = {
        "version": VERSION,
        "seed": seed,
        "size": size,
        "centers": list(centers) if centers else None,
    }
    _claim(out, recipe, cases)
    make = partial(_make_and_write, seed=seed, size=size, centers=centers, root=out)
    cores = os.cpu_count() or 1
    workers = min(workers or (cores if size == "small" else min(cores, FULL_WORKERS)), cases)
    bar = partial(track, description="phantom", total=cases, console=Console(stderr=True))
    if workers == 1:
        rows = list(bar(map(make, range(cases))))
    else:
        with make_pool(workers) as pool:
            rows = list(bar(pool.map(make, range(cases))))
    _write_clinical(out / "clinical.csv", rows)


def _make_and_write(
    index: int, *, seed: int, size: Size, centers: Sequence[str] | None, root: Path
) -> dict[str, str]:
    case = make_case(index, seed, size, centers=centers)
    write_case(case, root)
    return case.clinical


def _check(cases: int, seed: int, size: str, centers: Sequence[str] | None) -> None:
    if cases < 1:
        raise HnsegError(f"cases={cases}: a cohort needs cases; give 1 or more")
    if seed < 0:
        raise HnsegError(f"seed={seed}: give a seed of 0 or more")
    if size not in ("small", "full"):
        raise HnsegError(f"size={size}: choose small or full")
    for name in centers or ():
        if name not in NAMES:
            raise HnsegError(f"centers: '{name}' is unknown; choose from {', '.join(NAMES)}")


def _claim(out: Path, recipe: dict[str, object], cases: int) -> None:
    """Records what the folder will hold, or refuses it because it holds something else."""
    record = out / RECORD
    try:
        out.mkdir(parents=True, exist_ok=True)
        if record.is_file():
            found = json.loads(record.read_text())
            if {key: found.get(key) for key in recipe} != recipe or found.get("cases", 0) > cases:
                held = ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)
                raise HnsegError(
                    f"{out}: holds another cohort ({held}); name a new folder or remove this one"
                )
        elif any(out.iterdir()):
            raise HnsegError(f"{out}: is not empty and holds no phantom; name a new folder")
        record.write_text(json.dumps(recipe | {"cases": cases}, indent=2) + "\n")
    except OSError as error:
        raise HnsegError(f"{out}: cannot be written ({error.strerror}); name another folder") from error
    except (ValueError, AttributeError) as error:
        raise HnsegError(f"{record}: is not a phantom's record; name a new folder") from error


def _write_clinical(path: Path, rows: list[dict[str, str]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["PatientID"]))
