"""Read a cohort before anyone trains on it, and say what is wrong with it, case by case."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import cc3d
import numpy as np
import SimpleITK as sitk
from rich.markup import escape

from hnseg.errors import HnsegError
from hnseg.files import print_table, table_console
from hnseg.imaging.case import Case
from hnseg.imaging.checks import Issue, check_case, overlap, z_range
from hnseg.imaging.images import read_image, read_label, to_array
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.suv import read_pet
from hnseg.metrics.official import CLASSES
from hnseg.processes import map_cases


@dataclass(frozen=True)
class Geometry:
    """An image's grid: size and spacing (x, y, z), orientation code (LPS: as ITK counts), reach in z."""

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    z_mm: tuple[float, float]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """The geometry of `image`."""
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        return cls(image.GetSize(), image.GetSpacing(), code, z_range(image))


@dataclass(frozen=True)
class CaseAudit:
    """What was found in one case; fields are empty where a file could not be read.

    Args:
        case: The case.
        findings: Its issues, errors first.
        ct: Its CT's grid.
        pet: Its PET's.
        overlap: Fraction of the CT's volume in the PET's field of view.
        label_values: Values in its label map.
        components: 26-connected components by class name; empty without a label.
        volumes_ml: Volume by class name, ml; empty without a label.
        digests: Of the voxels of "CT" and "PET".
    """

    case: Case
    findings: tuple[Issue, ...] = ()
    ct: Geometry | None = None
    pet: Geometry | None = None
    overlap: float | None = None
    label_values: tuple[int, ...] = ()
    components: dict[str, int] = field(default_factory=dict)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the case can be trained on or segmented: no issue is an error."""
        return all(issue.level != "error" for issue in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The audit as plain types, for `json.dumps`."""
        plain = asdict(self) | {"usable": self.usable}
        files = {name: str(path) for name in ("ct", "pet", "label") if (path := plain["case"][name])}
        plain["case"] |= files
        return plain


def audit_case(case: Case) -> CaseAudit:
    """Read all files of a case and judge them; what cannot be read becomes an issue, not an exception."""
    if case.fault:
        return CaseAudit(case, (Issue("error", case.fault),))
    issues: list[Issue] = []
    ct = _try(partial(read_image, case.ct), issues)
    pet = _try(partial(read_pet, case), issues)
    label = _try(partial(read_label, case.label), issues) if case.label else None
    covered = None
    if ct is not None and pet is not None:
        issues += check_case(ct, pet, label)
        covered = overlap(ct, pet)
    return CaseAudit(
        case=case,
        findings=tuple(sorted(issues, key=lambda issue: issue.level)),
        ct=None if ct is None else Geometry.of(ct),
        pet=None if pet is None else Geometry.of(pet),
        overlap=covered,
        digests={name: _digest(image) for name, image in (("CT", ct), ("PET", pet)) if image is not None},
        **({} if label is None else _lesions(label)),
    )


def audit(cases: Sequence[Case], workers: int | None = None) -> list[CaseAudit]:
    """Audit every case, in parallel with a progress bar on stderr, and look for repeated images.

    Args:
        cases: The cohort, best read with `strict=False` so that a missing file is an issue too.
        workers: Processes; a whole-body case takes up to 2 GB in each. Default: up to four.

    Returns:
        One audit a case, in the order of `cases`.

    Raises:
        HnsegError: A worker was killed, most likely for want of memory.
    """
    return _mark_duplicates(list(map_cases(audit_case, cases, "auditing", workers=workers)))


def _try(read: Callable[[], sitk.Image], issues: list[Issue]) -> sitk.Image | None:
    try:
        return read()
    except HnsegError as error:
        issues.append(Issue("error", str(error)))
        return None


def _lesions(label: sitk.Image) -> dict[str, Any]:
    """Values, components (26-connected) and ml of each class in a label map."""
    array, ml = to_array(label), voxel_ml(label.GetSpacing())
    masks = {name: array == value for name, value in CLASSES.items()}
    return {
        "label_values": tuple(np.unique(array).tolist()),
        "components": {name: int(cc3d.connected_components(m).max()) for name, m in masks.items()},
        "volumes_ml": {name: float(m.sum()) * ml for name, m in masks.items()},
    }


def _digest(image: sitk.Image) -> str:
    values = np.ascontiguousarray(sitk.GetArrayViewFromImage(image))
    return hashlib.blake2b(values.data, digest_size=16).hexdigest()


def _mark_duplicates(audits: list[CaseAudit]) -> list[CaseAudit]:
    """Add a warning to every case whose CT or PET has the voxels of another one's."""
    holders: dict[tuple[str, str], list[str]] = {}
    for checked in audits:
        for image in checked.digests.items():  # name and digest
            holders.setdefault(image, []).append(checked.case.case_id)
    marked = []
    for checked in audits:
        repeats = []
        for name, digest in checked.digests.items():
            if others := ", ".join(case for case in holders[name, digest] if case != checked.case.case_id):
                text = f"{name} is identical to that of {others}: keep one, or one fold for all"
                repeats.append(Issue("warning", text))
        marked.append(replace(checked, findings=(*checked.findings, *repeats)))
    return marked


_HEADINGS = ("case", "CT x y z", "CT mm", "axes", "z mm", "PET x y z", "PET mm", "PET over CT")
_STYLE = {"error": "bold red", "warning": "yellow"}


def print_audit(audits: Sequence[CaseAudit], orphans: Sequence[str] = ()) -> None:
    """Print what an audit found to stdout.

    Args:
        audits: One a case.
        orphans: Files and folders that belong to no case.
    """
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
