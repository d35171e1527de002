"""Read a cohort before anyone trains on it, and say what is wrong with it, case by case."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import SimpleITK as sitk
from rich.markup import escape
from rich.table import Table

from hnseg.errors import HnsegError
from hnseg.files import table_console
from hnseg.imaging.case import Case
from hnseg.imaging.checks import Finding, check_case, overlap, z_range
from hnseg.imaging.images import read_image, read_label, to_array
from hnseg.imaging.suv import read_pet
from hnseg.processes import make_pool

__all__ = ["CaseAudit", "Finding", "Geometry", "audit", "audit_case", "check_case", "usable"]

CLASSES = {1: "GTVp", 2: "GTVn"}


@dataclass(frozen=True)
class Geometry:
    """An image's grid: size and spacing (x, y, z), orientation code (LPS: as ITK counts), reach in z."""

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    z_mm: tuple[float, float]

    @classmethod
    def of(cls, image: sitk.Image) -> "Geometry":
        """The geometry of `image`."""
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        return cls(image.GetSize(), image.GetSpacing(), code, z_range(image))


@dataclass(frozen=True)
class CaseAudit:
    """What was found in one case; fields are empty where a file could not be read.

    `components` (26-connected) and `volumes_ml` are keyed by class name, GTVp and GTVn; they are empty
    without a label. `digests` holds a hash of the voxels under "CT" and "PET".
    """

    case: Case
    findings: tuple[Finding, ...] = ()
    ct: Geometry | None = None
    pet: Geometry | None = None
    overlap: float | None = None
    label_values: tuple[int, ...] = ()
    components: dict[str, int] = field(default_factory=dict)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the case can be trained on or segmented: no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The audit as plain types, for `json.dumps`."""
        plain = asdict(self) | {"usable": self.usable}
        files = {name: value and str(value) for name, value in plain["case"].items() if name != "pet_factor"}
        plain["case"] |= files
        return plain


def audit_case(case: Case) -> CaseAudit:
    """Read all files of a case and judge them; what cannot be read becomes a finding, not an exception."""
    if case.fault:
        return CaseAudit(case, (Finding("error", case.fault),))
    findings: list[Finding] = []
    ct = _try(partial(read_image, case.ct), findings)
    pet = _try(partial(read_pet, case), findings)
    label = _try(partial(read_label, case.label), findings) if case.label else None
    share = None
    if ct is not None and pet is not None:
        findings += check_case(ct, pet, label)
        share = overlap(ct, pet)
    images = {name: image for name, image in (("CT", ct), ("PET", pet)) if image is not None}
    return CaseAudit(
        case=case,
        findings=tuple(sorted(findings, key=lambda finding: finding.level)),
        ct=Geometry.of(ct) if ct is not None else None,
        pet=Geometry.of(pet) if pet is not None else None,
        overlap=share,
        digests={name: _digest(image) for name, image in images.items()},
        **(_lesions(label) if label is not None else {}),
    )


def audit(cases: Sequence[Case], workers: int | None = None) -> list[CaseAudit]:
    """Audit every case, in parallel with a progress bar on stderr, and look for repeated images.

    Args:
        cases: the cohort, best read with `strict=False` so that a missing file is a finding too.
        workers: processes; a whole-body case takes up to 2 GB in each. Default: up to four.

    Returns:
        One audit a case, in the order of `cases`.

    Raises:
        HnsegError: a worker was killed, most likely for want of memory.
    """
    workers = min(workers or min(4, os.cpu_count() or 1), len(cases))
    if workers <= 1:
        return _mark_duplicates(_with_bar(map(audit_case, cases), len(cases)))
    try:
        with make_pool(workers) as pool:
            return _mark_duplicates(_with_bar(pool.map(audit_case, cases), len(cases)))
    except BrokenProcessPool as error:
        raise HnsegError(f"--workers {workers}: a worker was killed, likely for memory; use fewer") from error


def usable(audits: Sequence[CaseAudit]) -> tuple[list[Case], dict[str, list[str]]]:
    """The cases without an error, and for each other case id the reasons why it is refused."""
    accepted = [one.case for one in audits if one.usable]
    refused = {
        one.case.case_id: [finding.text for finding in one.findings if finding.level == "error"]
        for one in audits
        if not one.usable
    }
    return accepted, refused


def _with_bar(audits: Iterable[CaseAudit], total: int) -> list[CaseAudit]:
    from rich.console import Console
    from rich.progress import track

    return list(track(audits, "auditing", total, console=Console(stderr=True)))


def _try(read: Callable[[], sitk.Image], faults: list[Finding]) -> sitk.Image | None:
    try:
        return read()
    except HnsegError as error:
        faults.append(Finding("error", str(error)))
        return None


def _lesions(label: sitk.Image) -> dict[str, Any]:
    """Values, components (26-connected) and ml of each class in a label map."""
    import cc3d

    array = to_array(label)
    ml = float(np.prod(label.GetSpacing())) / 1000
    masks = {name: array == value for value, name in CLASSES.items()}
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
    for one in audits:
        for digest in one.digests.items():
            holders.setdefault(digest, []).append(one.case.case_id)
    marked = []
    for one in audits:
        repeats = [
            Finding(
                "warning",
                f"{name} is identical to that of {', '.join(others)}: keep one, or one fold for all",
            )
            for name, digest in one.digests.items()
            if (others := [case for case in holders[name, digest] if case != one.case.case_id])
        ]
        marked.append(replace(one, findings=(*one.findings, *repeats)))
    return marked


_STYLE = {"error": "bold red", "warning": "yellow"}


def print_audit(audits: Sequence[CaseAudit], orphans: Sequence[str] = ()) -> None:
    """Print what an audit found to stdout.

    Args:
        audits: one a case.
        orphans: files and folders that belong to no case.
    """
    console = table_console()
    table = Table(title="cases")
    for column in ("case", "CT x y z", "CT mm", "axes", "z mm", "PET x y z", "PET mm", "PET over CT"):
        table.add_column(column)
    for column in ("GTVp n, ml", "GTVn n, ml", "usable"):
        table.add_column(column)
    for audit in audits:
        table.add_row(*_row(audit))
    console.print(table)
    for audit in audits:
        for finding in audit.findings:
            style = _STYLE[finding.level]
            line = f"[{style}]{finding.level}[/] {escape(audit.case.case_id)}: {escape(finding.text)}"
            console.print(line, highlight=False, soft_wrap=True)
    for orphan in orphans:
        console.print(
            f"[yellow]warning[/] {escape(orphan)}: belongs to no case", highlight=False, soft_wrap=True
        )
    bad = sum(not audit.usable for audit in audits)
    console.print(f"{len(audits)} cases, {len(audits) - bad} usable, {bad} not; {len(orphans)} orphans")


def _row(audit: CaseAudit) -> list[str]:
    ct, pet = audit.ct, audit.pet
    lesions = [
        f"{count}, {audit.volumes_ml[name]:.1f}" if count else "none"
        for name, count in audit.components.items()
    ]
    return [
        escape(audit.case.case_id),
        *_grid(ct),
        ct.orientation if ct else "-",
        f"{ct.z_mm[1] - ct.z_mm[0]:.0f}" if ct else "-",
        *_grid(pet),
        f"{audit.overlap:.0%}" if audit.overlap is not None else "-",
        *(lesions or ["-", "-"]),
        "yes" if audit.usable else "[bold red]no[/]",
    ]


def _grid(geometry: Geometry | None) -> tuple[str, str]:
    if geometry is None:
        return "-", "-"
    return " ".join(map(str, geometry.size)), " ".join(f"{step:.3g}" for step in geometry.spacing_mm)
