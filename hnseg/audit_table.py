"""The audit as a reader sees it: a table of the cases, then every finding in one line."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from hnseg.audit import CaseAudit, Geometry
from hnseg.terminal import table_console

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
