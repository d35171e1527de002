"""One synthetic patient: anatomy, lesions and scans put together, and the files they are kept in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hnseg.data.phantom.anatomy import build, chin_height, table
from hnseg.data.phantom.imaging import head_mask, label_map, scan_ct, scan_pet
from hnseg.data.phantom.lesions import draw_lesions
from hnseg.data.phantom.patient import Patient
from hnseg.data.phantom.scanner import Size, draw_centre, draw_grids
from hnseg.images import write_image

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
