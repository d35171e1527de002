"""What makes the images of a case unusable or doubtful, and a cohort's audit before training."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import cc3d
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from rich.markup import escape

from hnseg.errors import HnsegError
from hnseg.files import print_table, table_console
from hnseg.imaging.case import Case
from hnseg.imaging.grid import bounds
from hnseg.imaging.images import read_image, read_label, same_grid, to_array
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.suv import read_pet
from hnseg.metrics.official import CLASSES
from hnseg.processes import map_cases

# Air is near -1000 HU and bone above 200 HU, in every head-and-neck scan.
HU_AIR, HU_BONE = -200.0, 200.0
# SUV is near 1 in the body's mean, by definition, and some times that in a scan of the brain alone; Bq/ml
# are 1,400 to 5,000 times the SUV, stored integers mostly 100 or 1,000 times. The median does not see
# bladders, spilt tracer, or noise that is mostly air.
SUV_BODY_LIMIT = 20.0
# The median was 0.4 to 0.9 in 26 scans of trunk, limbs and neck; kBq/ml are some 2 to 10 times the SUV.
SUV_BODY_USUAL = 2.5
# SUV reaches some tens in the brain or bladder, some hundreds in the few voxels of an injection site.
SUV_LIMIT = 200.0
# No scan stays below: a factor was applied to what was SUV already, or a wrong one.
SUV_LEAST = 0.1
SUV_REMEDY = (
    "give what makes SUV of it as pet_factor in a CSV case list, or weight, dose and times in CASE__PT.json"
)
MIN_OVERLAP = 0.5  # of the body that the CT shows: air around it needs no PET
MIN_EXTENT_MM, MAX_EXTENT_MM = 60.0, 5000.0
_LATTICE = 40  # points a side


@dataclass(frozen=True)
class Issue:
    """A fault of a case: an "error" makes it unusable, a "warning" calls for a look."""

    level: Literal["error", "warning"]
    text: str


def check_case(ct: sitk.Image, pet: sitk.Image, label: sitk.Image | None = None) -> list[Issue]:
    """The issues of a case, errors first.

    Args:
        ct: CT, HU.
        pet: PET, SUV, on a grid of its own.
        label: Label map 0/1/2 on the CT's grid, where there is one.
    """
    points = _Points.of(ct, pet)
    issues = [*_check_intensities(ct, pet, points), *_check_overlap(points), *_check_extent(ct, pet)]
    if label is not None and not same_grid(ct, label):
        issues.append(Issue("error", "label is not on the CT's grid: resample it, nearest neighbour"))
    elif label is not None and not sitk.GetArrayViewFromImage(label).any():
        text = "label is empty: check that the patient has neither GTVp nor GTVn"
        issues.append(Issue("warning", text))
    return sorted(issues, key=lambda issue: issue.level)


def overlap(ct: sitk.Image, pet: sitk.Image) -> float:
    """Fraction of the CT's volume that lies in the PET's field of view, by a lattice of 40³ points."""
    return float(_Points.of(ct, pet).in_pet.mean())


class _Points(NamedTuple):
    """40³ points over the CT: which the PET holds, which show body, and the nearest PET voxels."""

    in_pet: NDArray[np.bool_]
    body: NDArray[np.bool_]
    suv: NDArray[np.float32]

    @classmethod
    def of(cls, ct: sitk.Image, pet: sitk.Image) -> _Points:
        steps = (np.arange(_LATTICE) + 0.5) / _LATTICE
        lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
        in_ct = lattice * ct.GetSize() - 0.5  # voxel i reaches from i - 0.5 to i + 0.5
        points = in_ct @ _affine(ct).T + ct.GetOrigin()
        in_pet = (points - pet.GetOrigin()) @ np.linalg.inv(_affine(pet)).T
        last = np.array(pet.GetSize()) - 1
        ct_index, pet_index = np.rint(in_ct).astype(int), np.clip(np.rint(in_pet), 0, last).astype(int)
        return cls(
            ((in_pet >= -0.5) & (in_pet <= last + 0.5)).all(axis=1),
            sitk.GetArrayViewFromImage(ct)[tuple(ct_index.T[::-1])] > HU_AIR,
            sitk.GetArrayViewFromImage(pet)[tuple(pet_index.T[::-1])],
        )


def _affine(image: sitk.Image) -> np.ndarray:
    """Matrix (3, 3) from index (x, y, z) to millimetres."""
    return np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()


def _check_intensities(ct: sitk.Image, pet: sitk.Image, points: _Points) -> Iterator[Issue]:
    hu, suv = sitk.GetArrayViewFromImage(ct), sitk.GetArrayViewFromImage(pet)
    ct_low, ct_high = float(hu.min()), float(hu.max())
    pet_low, pet_high = float(suv.min()), float(suv.max())
    if ct_low > HU_AIR and pet_low < HU_AIR:
        text = "CT and PET look swapped (the PET holds air in HU, the CT none): exchange the two files"
        yield Issue("error", text)
        return
    if ct_low == ct_high:
        yield Issue("error", f"CT is {ct_low:g} everywhere: export it again")
    elif ct_low > HU_AIR or ct_high < HU_BONE:
        text = f"CT runs from {ct_low:g} to {ct_high:g}, not HU (air to bone)"
        yield Issue("error", f"{text}: apply the DICOM rescale slope and intercept")
    if pet_low == pet_high:
        yield Issue("error", f"PET is {pet_low:g} everywhere: export it again")
    elif pet_low < HU_AIR:
        text = f"PET falls to {pet_low:.3g}, as no SUV does: name a PET, not a CT, or {SUV_REMEDY}"
        yield Issue("error", text)
    else:
        yield from _check_suv(suv, pet_high, points.suv[points.in_pet & points.body])
        if pet_low < -1:
            yield Issue("warning", f"PET falls to {pet_low:.3g}: SUV is not negative, check its rescaling")


def _check_suv(suv: np.ndarray, highest: float, in_body: np.ndarray) -> Iterator[Issue]:
    """What the PET's highest value and the median of positive values in the body say of its unit."""
    positive = in_body[in_body > 0] if (in_body > 0).any() else suv[suv > 0]
    typical = float(np.median(positive)) if positive.size else 0.0
    if typical > SUV_BODY_LIMIT:
        text = f"PET is {typical:.3g} in the body: Bq/ml or counts, not SUV (about 1); {SUV_REMEDY}"
        yield Issue("error", text)
    elif highest < SUV_LEAST:
        text = f"PET reaches {highest:.2g} only, less than any SUV; correct its pet_factor or sidecar"
        yield Issue("error", f"{text}, or {SUV_REMEDY}")
    elif typical > SUV_BODY_USUAL:
        text = f"PET is {typical:.3g} in the body, where SUV is about 1: check that it is not kBq/ml"
        yield Issue("warning", text)
    elif highest > SUV_LIMIT:
        text = f"PET reaches {highest:.3g} in places: check for an injection site or artefact"
        yield Issue("warning", text)
    elif highest <= 1:
        text = f"PET reaches {highest:.2g} only: check that it is SUV, not scaled to [0, 1]"
        yield Issue("warning", text)


def _check_overlap(points: _Points) -> Iterator[Issue]:
    covered = float(points.in_pet[points.body].mean() if points.body.any() else points.in_pet.mean())
    if covered == 0:
        text = "CT and PET do not overlap in space: check that both belong to one examination"
        yield Issue("error", text)
    elif covered < MIN_OVERLAP:
        text = f"PET covers {covered:.0%} of the body only: lesions outside it are seen on CT alone"
        yield Issue("warning", text)


def _check_extent(ct: sitk.Image, pet: sitk.Image) -> Iterator[Issue]:
    low, high = bounds(ct)
    spacing = ct.GetSpacing()
    if min(spacing) < 0.1 or max(spacing) > 10:
        steps = " x ".join(f"{step:.3g}" for step in spacing)
        text = f"CT spacing {steps} mm: check the header's unit, and that no slice is missing"
        yield Issue("warning", text)
    elif high[2] - low[2] < MIN_EXTENT_MM:
        text = f"CT covers {high[2] - low[2]:.0f} mm in z only: check that slices are not missing"
        yield Issue("warning", text)
    for name, image in (("CT", ct), ("PET", pet)):
        sides = np.multiply(image.GetSize(), image.GetSpacing())
        if sides.max() > MAX_EXTENT_MM:
            metres = " x ".join(f"{side / 1000:.3g}" for side in sides)
            text = f"{name} measures {metres} m, more than any body: its header's spacing is not in mm"
            yield Issue("error", text)


@dataclass(frozen=True)
class Geometry:
    """An image's grid: size and spacing (x, y, z), orientation code (LPS: as ITK counts), reach in z."""

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    z_mm: tuple[float, float]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        low, high = bounds(image)
        return cls(image.GetSize(), image.GetSpacing(), code, (float(low[2]), float(high[2])))


@dataclass(frozen=True)
class CaseAudit:
    """The issues and measures of one case; fields are empty where a file could not be read."""

    case: Case
    findings: tuple[Issue, ...] = ()  # errors first
    ct: Geometry | None = None
    pet: Geometry | None = None
    overlap: float | None = None  # fraction of the CT's volume in the PET's field of view
    components: dict[str, int] = field(default_factory=dict)  # 26-connected, by class name
    volumes_ml: dict[str, float] = field(default_factory=dict)  # by class name
    digests: dict[str, str] = field(default_factory=dict)  # of the voxels of "CT" and "PET"

    @property
    def usable(self) -> bool:
        """Whether the case can be trained on or segmented: no issue is an error."""
        return all(issue.level != "error" for issue in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The audit as plain types, for `json.dumps`."""
        plain = asdict(self) | {"usable": self.usable}
        plain["case"] |= {part: str(path) for part in ("ct", "pet", "label") if (path := plain["case"][part])}
        return plain


def audit_case(case: Case) -> CaseAudit:
    """Read and check all files of a case; a file that cannot be read becomes an issue, not an exception."""
    if case.fault:
        return CaseAudit(case, (Issue("error", case.fault),))
    issues: list[Issue] = []

    def read(reader: Callable[[], sitk.Image]) -> sitk.Image | None:
        try:
            return reader()
        except HnsegError as error:
            issues.append(Issue("error", str(error)))
            return None

    ct, pet = read(partial(read_image, case.ct)), read(partial(read_pet, case))
    label = read(partial(read_label, case.label)) if case.label else None
    covered, components, volumes = None, {}, {}
    if ct is not None and pet is not None:
        issues += check_case(ct, pet, label)
        covered = overlap(ct, pet)
    if label is not None:
        masks = {name: to_array(label) == value for name, value in CLASSES.items()}
        components = {name: int(cc3d.connected_components(mask).max()) for name, mask in masks.items()}
        volumes = {name: float(mask.sum()) * voxel_ml(label.GetSpacing()) for name, mask in masks.items()}
    return CaseAudit(
        case=case,
        findings=tuple(sorted(issues, key=lambda issue: issue.level)),
        ct=None if ct is None else Geometry.of(ct),
        pet=None if pet is None else Geometry.of(pet),
        overlap=covered,
        components=components,
        volumes_ml=volumes,
        digests={name: _digest(image) for name, image in (("CT", ct), ("PET", pet)) if image is not None},
    )


def _digest(image: sitk.Image) -> str:
    values = np.ascontiguousarray(sitk.GetArrayViewFromImage(image))
    return hashlib.blake2b(values.data, digest_size=16).hexdigest()


def audit(cases: Sequence[Case], workers: int | None = None) -> list[CaseAudit]:
    """Audit every case, in parallel with a progress bar on stderr, and warn of repeated images.

    Args:
        cases: The cohort, read with `strict=False` so that a missing file is an issue too.
        workers: Processes; a whole-body case takes up to 2 GB in each. Default: up to four.
    """
    audits = list(map_cases(audit_case, cases, "auditing", workers=workers))
    holders: dict[tuple[str, str], list[str]] = defaultdict(list)
    for checked in audits:
        for image in checked.digests.items():  # name and digest
            holders[image].append(checked.case.case_id)
    for number, checked in enumerate(audits):
        repeats = []
        for name, digest in checked.digests.items():
            if others := ", ".join(case for case in holders[name, digest] if case != checked.case.case_id):
                text = f"{name} is identical to that of {others}: keep one, or one fold for all"
                repeats.append(Issue("warning", text))
        audits[number] = replace(checked, findings=(*checked.findings, *repeats))
    return audits


_HEADINGS = ("case", "CT x y z", "CT mm", "axes", "z mm", "PET x y z", "PET mm", "PET over CT")
_STYLE = {"error": "bold red", "warning": "yellow"}


def print_audit(audits: Sequence[CaseAudit], orphans: Sequence[str] = ()) -> None:
    """Print a cohort's audit to stdout, faulty cases first, and what belongs to no case."""
    audits = sorted(audits, key=lambda checked: (checked.usable, not checked.findings))
    console = table_console()
    headings = (*_HEADINGS, *(f"{name} n, ml" for name in CLASSES), "usable")
    print_table(headings, [_row(checked) for checked in audits], "cases", console)
    issues = [(checked.case.case_id, issue) for checked in audits for issue in checked.findings]
    issues += [(orphan, Issue("warning", "belongs to no case")) for orphan in orphans]
    for name, issue in issues:
        line = f"[{_STYLE[issue.level]}]{issue.level}[/] {escape(name)}: {escape(issue.text)}"
        console.print(line, highlight=False, soft_wrap=True)
    bad = sum(not checked.usable for checked in audits)
    console.print(f"{len(audits)} cases, {len(audits) - bad} usable, {bad} not; {len(orphans)} orphans")


def audit_table(audits: Sequence[CaseAudit]) -> list[dict[str, str]]:
    """The audit as rows of a CSV file; sizes and spacings are x, y, z."""
    rows = []
    for checked in audits:
        texts = {level: "; ".join(i.text for i in checked.findings if i.level == level) for level in _STYLE}
        row = {"case_id": checked.case.case_id, "center": checked.case.center}
        row |= {"usable": "yes" if checked.usable else "no", "errors": texts["error"]}
        row |= {"warnings": texts["warning"]}
        for name, grid in (("ct", checked.ct), ("pet", checked.pet)):
            row[f"{name}_size"] = "" if grid is None else " ".join(map(str, grid.size))
            row[f"{name}_spacing_mm"] = "" if grid is None else " ".join(f"{s:.4g}" for s in grid.spacing_mm)
            row[f"{name}_orientation"] = "" if grid is None else grid.orientation
        row["overlap"] = "" if checked.overlap is None else f"{checked.overlap:.3f}"
        for name in CLASSES:
            row[f"{name}_lesions"] = str(checked.components.get(name, ""))
            row[f"{name}_ml"] = f"{checked.volumes_ml[name]:.2f}" if name in checked.volumes_ml else ""
        rows.append(row)
    return rows


def _row(checked: CaseAudit) -> list[str]:
    ct, components, ml = checked.ct, checked.components, checked.volumes_ml
    lesions = [f"{count}, {ml[name]:.1f}" if count else "none" for name, count in components.items()]
    return [
        checked.case.case_id,
        *_grid(ct),
        ct.orientation if ct else "-",
        f"{ct.z_mm[1] - ct.z_mm[0]:.0f}" if ct else "-",
        *_grid(checked.pet),
        f"{checked.overlap:.0%}" if checked.overlap is not None else "-",
        *(lesions or ["-"] * len(CLASSES)),
        "yes" if checked.usable else "no",
    ]


def _grid(geometry: Geometry | None) -> tuple[str, str]:
    if geometry is None:
        return "-", "-"
    return " ".join(map(str, geometry.size)), " ".join(f"{step:.3g}" for step in geometry.spacing_mm)
