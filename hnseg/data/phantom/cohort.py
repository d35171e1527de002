"""Synthetic patients on disk, in the HECKTOR layout."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from hnseg.data.phantom.anatomy import Patient, build, chin_height, table
from hnseg.data.phantom.lesions import draw_lesions
from hnseg.data.phantom.scanner import Size, draw_centre, draw_grids, head_mask, label_map, scan_ct, scan_pet
from hnseg.errors import HnsegError
from hnseg.files import write_table
from hnseg.imaging.images import write_image
from hnseg.processes import map_cases

FIELDS = ("PatientID", "CenterID", "Age", "Gender", "Weight", "HPV Status")  # of clinical.csv
RECORD = "phantom.json"
VERSION = 2  # raise it when the same seed gives other images
FULL_WORKERS = 4  # a whole-body case of full size takes 1.5 GB


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic patient.

    Attributes:
        case_id: The centre's name, the cohort's seed and the case's number.
        center: The centre's name.
        ct: int16, HU.
        pet: float32, SUV, on a grid of its own.
        label: uint8 on the CT's grid: 0 background, 1 GTVp, 2 GTVn.
        head: uint8 on the CT's grid: 1 in the head, down to the chin.
        clinical: The patient's row of clinical.csv.
    """

    case_id: str
    center: str
    ct: sitk.Image
    pet: sitk.Image
    label: sitk.Image
    head: sitk.Image
    clinical: dict[str, str]


def make_case(index: int, seed: int, size: Size = "small", *, center: str | None = None) -> PhantomCase:
    """Case number `index` (from 0) of the cohort with this seed, whatever the cohort's length.

    Args:
        index: Of the case.
        seed: Of the cohort.
        size: "small" for tests and demonstrations, "full" for scans of the real size.
        center: Name of a centre; by default drawn in HECKTOR's proportions.
    """
    # Separate streams, so that the size of a scan does not change the patient in it.
    streams = np.random.SeedSequence([seed, index]).spawn(3)
    rng, grid_rng, noise_rng = (np.random.default_rng(stream) for stream in streams)
    centre = draw_centre(rng, center)
    patient = Patient.draw(rng, centre.shift)
    lesions = draw_lesions(patient, rng)
    body = build(patient, [lesion.solid for lesion in lesions], rng)
    parts = [*table(patient), *body, *(part for lesion in lesions for part in lesion.parts)]
    grid, pet_grid = draw_grids(grid_rng, centre, patient, size)
    case_id = f"{centre.name}-{seed}{index + 1:03d}"  # of another seed, another
    return PhantomCase(
        case_id,
        centre.name,
        ct=grid.image(scan_ct(grid, parts, centre, noise_rng)),
        pet=pet_grid.image(scan_pet(pet_grid, parts, centre, noise_rng)),
        label=grid.image(label_map(grid, lesions)),
        head=grid.image(head_mask(grid, body, chin_height(patient))),
        clinical=_clinical(case_id, centre.name, patient, rng),
    )


def write_case(case: PhantomCase, root: Path) -> None:
    """Writes the four images of a case under `root`."""
    folder = root / case.case_id
    write_image(case.ct, folder / f"{case.case_id}__CT.nii.gz")
    write_image(case.pet, folder / f"{case.case_id}__PT.nii.gz")
    write_image(case.label, folder / f"{case.case_id}.nii.gz")
    write_image(case.head, root / "heads" / f"{case.case_id}.nii.gz")


def make_cohort(
    out: Path, cases: int, seed: int, *, size: Size = "small", workers: int | None = None
) -> None:
    """Writes a cohort in the HECKTOR layout, byte-identical for the same seed.

    Beside the cases lie `clinical.csv`, head masks in `heads/CASE.nii.gz` and `phantom.json`, which marks the
    cohort as synthetic. The same cohort may be made again, or longer, in the same folder.

    Args:
        out: Folder, new or empty or holding the same cohort.
        cases: How many.
        seed: Not negative.
        size: "small" or "full".
        workers: Processes; by default one per core, at most four at full size.

    Raises:
        HnsegError: The folder holds something else, or cannot be written.
    """
    _claim(out, {"version": VERSION, "seed": seed, "size": size}, cases)
    make = partial(_make_and_write, seed=seed, size=size, root=out)
    most = (os.cpu_count() or 1) if size == "small" else FULL_WORKERS
    rows = list(map_cases(make, range(cases), "phantom", workers=workers, most=most))
    write_table(out / "clinical.csv", FIELDS, sorted(rows, key=lambda row: row["PatientID"]))


def _make_and_write(index: int, *, seed: int, size: Size, root: Path) -> dict[str, str]:
    case = make_case(index, seed, size)
    write_case(case, root)
    return case.clinical


def _clinical(case_id: str, center: str, patient: Patient, rng: np.random.Generator) -> dict[str, str]:
    age = int(np.clip(rng.normal(60, 10), 30, 88))
    gender = "M" if rng.random() < 0.8 else "F"
    hpv = str(rng.choice(["0", "1", ""], p=[0.15, 0.5, 0.35]))
    return dict(zip(FIELDS, (case_id, center, str(age), gender, str(patient.weight), hpv), strict=True))


def _claim(out: Path, recipe: dict[str, Any], cases: int) -> None:
    """Records what the folder will hold; refuses a folder that holds something else."""
    record = out / RECORD
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = json.loads(record.read_text()) if record.is_file() else recipe | {"cases": 0}
        if not record.is_file() and any(out.iterdir()):
            raise HnsegError(f"{out}: is not empty and holds no phantom; name a new folder")
        if not found.items() >= recipe.items() or found["cases"] > cases:
            held = ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)
            raise HnsegError(f"{out}: holds another cohort ({held}); name a new folder or remove this one")
        record.write_text(json.dumps(recipe | {"cases": cases}, indent=2) + "\n")
    except (OSError, ValueError) as error:
        raise HnsegError(f"{out}: cannot hold a phantom ({error}); name another folder") from error
