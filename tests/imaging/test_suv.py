"""SUV from a factor or a sidecar, against an example worked by hand, and what is not taken for SUV."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import pet_image, write_case

from hnseg.card import Stage
from hnseg.data.prepare import prepare, prepare_case
from hnseg.errors import HnsegError
from hnseg.imaging.audit import audit
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.suv import read_pet, sidecar, sidecar_factor

# 74 kg, 400 MBq at 8:00, scanned after one half-life of F-18 (109.77 min): 200 MBq are left, so that
# SUV 1 is 200e6 Bq / 74,000 g = 2702.7 Bq/ml.
FACTS = {
    "units": "Bq/ml",
    "weight_kg": 74,
    "dose_bq": 400e6,
    "injection_time": "08:00:00",
    "scan_time": "09:49:46.200",
}
BQ_ML_OF_SUV_1 = 200e6 / 74_000


def write_facts(path: Path, **changes: Any) -> Path:
    facts = {key: value for key, value in (FACTS | changes).items() if value is not None}
    path.write_text(json.dumps(facts))
    return path


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case whose PET is in Bq/ml."""
    write_case(tmp_path, "A", pet=sitk.Cast(pet_image() * BQ_ML_OF_SUV_1, sitk.sitkFloat32))
    return read_cases(tmp_path)[0]


@pytest.mark.parametrize(
    ("changes", "bq_ml"),
    [
        ({}, BQ_ML_OF_SUV_1),
        ({"units": "kBq/ml"}, BQ_ML_OF_SUV_1 / 1e3),
        ({"half_life_s": 6586.2 / 2}, BQ_ML_OF_SUV_1 / 2),  # two half-lives
        ({"injection_time": "23:00:00", "scan_time": "00:49:46.200"}, BQ_ML_OF_SUV_1),
        ({"injection_time": "2026-01-31T23:00:00", "scan_time": "2026-02-01T00:49:46.200"}, BQ_ML_OF_SUV_1),
        ({"injection_time": "08:00", "scan_time": "08:00"}, 2 * BQ_ML_OF_SUV_1),
    ],
)
def test_a_sidecar_says_what_makes_suv(tmp_path: Path, changes: dict[str, Any], bq_ml: float) -> None:
    assert sidecar_factor(write_facts(tmp_path / "a.json", **changes)) == pytest.approx(1 / bq_ml, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"weight_kg": None, "scan_time": None}, "lacks weight_kg, scan_time"),
        ({"units": "counts"}, "units 'counts' make no SUV"),
        ({"weight_kg": 74_000}, "weight_kg=74000 is no number from 1 to 500; check its unit"),
        ({"dose_bq": "high"}, "dose_bq='high' is no number"),
        ({"half_life_s": float("nan")}, "half_life_s=nan is no number"),
        ({"scan_time": "20260131093000"}, "write both as HH:MM:SS"),
        ({"scan_time": "07:00:00"}, "23.0 h between them"),
    ],
)
def test_a_sidecar_that_would_be_misunderstood_is_refused(
    tmp_path: Path, changes: dict[str, Any], telling: str
) -> None:
    path = write_facts(tmp_path / "a.json", **changes)
    with pytest.raises(HnsegError) as caught:
        sidecar_factor(path)
    assert telling in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pet_is_read_in_suv_by_sidecar_or_factor(case: Case) -> None:
    suv = sitk.GetArrayFromImage(pet_image())
    write_facts(sidecar(case.pet))
    np.testing.assert_allclose(sitk.GetArrayFromImage(read_pet(case)), suv, rtol=1e-6)
    listed = replace(case, pet_factor=2 / BQ_ML_OF_SUV_1)  # the list's word goes first
    pet = read_pet(listed)
    np.testing.assert_allclose(sitk.GetArrayFromImage(pet), 2 * suv, rtol=1e-6)
    assert (pet.GetPixelID(), pet.GetSpacing()) == (sitk.sitkFloat32, pet_image().GetSpacing())


def test_training_refuses_becquerel_and_takes_their_suv(case: Case, tmp_path: Path) -> None:
    """The cached volume follows the factor: a sidecar put there, or changed, makes it anew."""
    stage = Stage("fine", (8, 8, 8), (6.0, 6.0, 6.0), placement="lesions")
    with pytest.raises(
        HnsegError, match=r"A: PET is .* in the body: Bq/ml or counts, not SUV.*CASE__PT\.json"
    ):
        prepare_case(case, stage, tmp_path / "cache")
    assert not audit([case], workers=1)[0].usable
    write_facts(sidecar(case.pet))
    assert audit([case], workers=1)[0].usable
    (volume,) = prepare([case], stage, tmp_path / "cache", workers=1)
    assert 5 < volume.load("pet").max() < 20  # SUV 12, and what a B-spline makes of its edges
    before = volume.load("pet").max()
    (volume,) = prepare([replace(case, pet_factor=2 / BQ_ML_OF_SUV_1)], stage, tmp_path / "cache", workers=1)
    assert volume.load("pet").max() == pytest.approx(2 * before, rel=1e-5)
