"""PET in SUV: as stored, by a factor from the case list, or by a sidecar; and the sphere of SUVpeak."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, stem
from hnseg.imaging.images import read_image

F18_HALF_LIFE_S = 6586.2  # 1.8295 h (Laboratoire National Henri Becquerel), the value scanners write
DAY_S = 24 * 3600.0
# Bq/ml a unit stands for; None: SUV already. Keys without case and slash, so that DICOM's codes fit too.
UNITS: dict[str, float | None] = {"bqml": 1.0, "kbqml": 1e3, "mbqml": 1e6, "suv": None, "gml": None}
REQUIRED = ("units", "weight_kg", "dose_bq", "injection_time", "scan_time")
# A gram, a megabecquerel or a minute given for the unit asked for falls outside these.
PLAUSIBLE = {"weight_kg": (1.0, 500.0), "dose_bq": (1e5, 5e9), "half_life_s": (60.0, 1e6)}


def read_scan(case: Case) -> tuple[sitk.Image, sitk.Image]:
    """CT (HU, int16 where it is stored so) and PET (SUV, float32) of a case."""
    case.check()
    return read_image(case.ct, integers=True), read_pet(case)


def read_pet(case: Case) -> sitk.Image:
    """A case's PET in SUV (float32), on its own grid.

    The case list's `pet_factor` multiplies the stored values; without one, the sidecar's factor does;
    without either the values are taken for SUV, which `hnseg.imaging.audit.check_case` doubts where it must.
    """
    image = read_image(case.pet)
    factor = sidecar_factor(sidecar(case.pet)) if case.pet_factor is None else case.pet_factor
    return image if factor is None else image * factor


def sidecar(pet: Path) -> Path:
    """The JSON file beside a PET image that may say how to make SUV of it: CASE__PT.json."""
    return pet.with_name(f"{stem(pet)}.json")


def sidecar_factor(path: Path) -> float | None:
    """What the PET's values are multiplied by to become SUV by body weight, from a sidecar.

    SUV = C [Bq/ml] · weight [g] / (dose [Bq] · 2^(−elapsed / half-life)): tissue at 1 g/ml, the injected
    dose decayed to the time for which the concentration holds. Source: QIBA FDG-PET/CT profile, "SUV
    calculation" (vendor-neutral pseudocode, DICOM Decay Correction START); Kinahan and Fletcher 2010, doi
    10.1053/j.sult.2010.10.001.

    The sidecar is a JSON object: `units` (Bq/ml, kBq/ml, MBq/ml or SUV), `weight_kg`, `dose_bq` (injected,
    at the injection), `injection_time` and `scan_time` (the time to which the image is decay-corrected, most
    often the scan's start; both HH:MM:SS or both 2026-01-31T08:30:00), and `half_life_s` (default: F-18).

    Returns:
        None where there is no sidecar, it says SUV, or has none of these keys (another program's file).

    Raises:
        HnsegError: Not JSON, missing or implausible values, or units that are no activity concentration.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HnsegError(f"{path}: cannot be read as JSON ({error}); correct or remove it") from error
    if not isinstance(values, dict) or not values.keys() & {*REQUIRED, "half_life_s"}:
        return None
    units = str(values.get("units", ""))
    unit_bq = UNITS.get(units.lower().replace("/", ""), 0.0)
    if unit_bq is None:
        return None
    if missing := [key for key in REQUIRED if key not in values]:
        raise HnsegError(f"{path}: lacks {', '.join(missing)}; SUV needs {', '.join(REQUIRED)}")
    if not unit_bq:
        raise HnsegError(
            f"{path}: units {units!r} make no SUV; give Bq/ml, kBq/ml, MBq/ml or SUV, "
            "or a pet_factor in the case list"
        )
    elapsed_s = _elapsed_s(path, str(values["injection_time"]), str(values["scan_time"]))
    half_life_s = _number(path, {"half_life_s": F18_HALF_LIFE_S} | values, "half_life_s")
    decayed_bq = _number(path, values, "dose_bq") * 2 ** (-elapsed_s / half_life_s)
    return unit_bq * _number(path, values, "weight_kg") * 1000 / decayed_bq


def _number(path: Path, values: dict[str, Any], key: str) -> float:
    low, high = PLAUSIBLE[key]
    try:
        value = float(values[key])
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not low <= value <= high:
        raise HnsegError(
            f"{path}: {key}={repr(values[key])[:30]} is no number from {low:g} to {high:g}; check its unit"
        )
    return value


def _elapsed_s(path: Path, start: str, end: str) -> float:
    """Seconds from injection to the scan; clock times may pass midnight once."""
    times = f"{path}: injection_time={start!r}, scan_time={end!r}"
    try:
        seconds = (_moment(end) - _moment(start)).total_seconds()
    except (ValueError, TypeError) as error:  # TypeError: one of the two with a time zone
        raise HnsegError(f"{times}; write both as HH:MM:SS or both as 2026-01-31T08:30:00") from error
    if "T" not in start and seconds < 0:
        seconds += DAY_S
    if not 0 <= seconds <= DAY_S / 2:
        raise HnsegError(f"{times}: {seconds / 3600:.1f} h between them; correct one")
    return seconds


def _moment(text: str) -> datetime:
    if "T" in text:
        return datetime.fromisoformat(text)
    if ":" not in text:  # 20260131083000 would be read as a time of day
        raise ValueError(text)
    return datetime.combine(datetime.min, time.fromisoformat(text))


# A sphere of 1 ml.
PEAK_RADIUS_MM = 6.2


def sphere_means(
    suv: NDArray[np.floating], spacing: Sequence[float], seen: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Mean of the voxels whose centres lie within 6.2 mm of each voxel's centre.

    Arrays are (z, y, x), `spacing` (x, y, z) in mm. Only voxels that are `seen` count, all by default; a
    sphere without any has mean 0.
    """
    counted = np.ones(suv.shape) if seen is None else seen.astype(np.float64)
    x, y, z = (np.arange(-(n := int(np.ceil(PEAK_RADIUS_MM / mm))), n + 1) * mm for mm in spacing)
    squared = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x**2
    ball = (squared <= PEAK_RADIUS_MM**2).astype(np.float64)
    total = ndimage.convolve(suv * counted, ball, mode="constant")
    return total / np.maximum(ndimage.convolve(counted, ball, mode="constant"), 1)
