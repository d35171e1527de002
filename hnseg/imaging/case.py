"""Case lists: what a cohort on disk consists of, before a voxel is read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from hnseg.errors import HnsegError

EXTENSIONS = (".nii.gz", ".nii", ".mha")  # in the order in which they are preferred
HEADS = "heads"  # ROOT/heads/CASE.nii.gz: masks for the head stage, not a case
LOST = "lost+found"  # a file system's own folder
CONTROL = {chr(code) for code in (*range(32), 127)}
LAYOUT = "ROOT/CASE/CASE__CT.nii.gz, CASE__PT.nii.gz and, where known, CASE.nii.gz"


@dataclass(frozen=True)
class Case:
    """One patient's PET/CT: CT (HU), PET, and the label map on the CT's grid where there is one.

    `pet_factor` makes SUV of the PET's values (None: they are SUV, or a sidecar tells, see `hnseg.suv`).
    `fault` says why the list's line cannot be used; such a case is only reported.
    """

    case_id: str
    ct: Path
    pet: Path
    label: Path | None = None
    center: str = ""
    pet_factor: float | None = None
    fault: str = ""

    def check(self) -> None:
        """Raise HnsegError if the case has a fault."""
        if self.fault:
            raise HnsegError(self.fault)


def read_cases(source: Path, *, strict: bool = True) -> list[Case]:
    """List the cases of a cohort.

    Args:
        source: a folder in the HECKTOR layout (CASE/CASE__CT.nii.gz and so on), or a CSV with the header
            `case_id, ct, pet[, label, center, pet_factor]` whose paths are relative to its own folder.
            `pt` is taken for `pet`; an empty `ct` or `pet` cell stands for the HECKTOR name beside the CSV.
        strict: refuse a list with a file that does not exist, an id that is no plain file name or a
            factor that is no number (training). Otherwise the case keeps the path, or the fault under a
            harmless name, and fails alone when it is read (inference).

    Returns:
        The cases, sorted by case_id. A case's centre is the CSV's `center`, else the part of its
        name before the first '-'.

    Raises:
        HnsegError: no such source, no case in it, a malformed CSV (missing columns, repeated case
            ids), or what `strict` refuses.
    """
    source = Path(source)
    if source.is_dir():
        try:
            cases = list(_folder_cases(source))
        except OSError as error:
            raise HnsegError(f"{source}: cannot be looked into ({error.strerror}); allow it") from error
        if not cases:
            raise HnsegError(f"{source}: no case in this folder; expected {LAYOUT}")
    elif not source.exists():
        raise HnsegError(f"{source}: no such folder or CSV; check the path")
    elif source.suffix.lower() == ".csv":
        cases = list(_csv_cases(source))
        if not cases:
            raise HnsegError(f"{source}: no case in this CSV; add a line for each case under the header")
    else:
        raise HnsegError(f"{source}: neither a folder nor a .csv; give a case list (folder: {LAYOUT})")
    if strict:
        _require_sound(cases)
    return sorted(cases, key=lambda case: case.case_id)


def check_case_id(case_id: str, where: str) -> None:
    """Refuse a case id that is not a plain file name: it becomes part of output paths.

    Raises:
        HnsegError: empty, longer than 100 bytes in UTF-8, starting with a dot, or with a slash,
            backslash or control character in it.
    """
    plain = case_id.isprintable() and not {"/", "\\"} & set(case_id) and not case_id.startswith(".")
    if not plain or not 0 < len(case_id.encode()) <= 100:
        raise HnsegError(f"{where}: case id {case_id[:100]!r} is not a plain file name; rename the case")


def center_of(case_id: str) -> str:
    """The centre in a HECKTOR case name: CHUM-001 → CHUM; '' for a name without '-'."""
    return case_id.partition("-")[0] if "-" in case_id else ""


def case_files(folder: Path) -> dict[str, Path]:
    """The files of a case folder that have a part in it, under 'ct', 'pet' and 'label'."""
    names = {"ct": f"{folder.name}__CT", "pet": f"{folder.name}__PT", "label": folder.name}
    candidates = {part: [folder / f"{name}{ext}" for ext in EXTENSIONS] for part, name in names.items()}
    return {
        part: found[0]
        for part, paths in candidates.items()
        if (found := [path for path in paths if _is_file(path)])
    }


def _is_file(path: Path) -> bool:
    """Whether a file can be seen there."""
    try:
        return path.is_file()
    except OSError:  # it may not be looked at, or no file can have that name
        return False


def mask_file(folder: Path, case_id: str) -> Path:
    """A case's file in a folder of masks: CASE.nii.gz, or what else is there of `EXTENSIONS`."""
    paths = [folder / f"{case_id}{extension}" for extension in EXTENSIONS]
    return next((path for path in paths if _is_file(path)), paths[0])


def _folder_cases(root: Path) -> Iterator[Case]:
    for folder in root.iterdir():
        if folder.name.startswith(".") or folder.name in (HEADS, LOST) or not folder.is_dir():
            continue
        files = case_files(folder)
        closed = "" if files else _closed(folder)
        if not files and not closed:
            continue
        name, fault = _usable_id(folder.name, str(root))
        fault = fault or closed
        ct = files.get("ct", folder / f"{folder.name}__CT.nii.gz")
        pet = files.get("pet", folder / f"{folder.name}__PT.nii.gz")
        yield Case(name, ct, pet, files.get("label"), center_of(name), fault=fault)


def _closed(folder: Path) -> str:
    """Why nothing in a folder can be seen, if so."""
    try:
        with suppress(FileNotFoundError):
            (folder / "_").stat()
    except OSError as error:
        return f"{folder}: cannot be entered ({error.strerror}); allow it, or move the folder away"
    return ""


def _csv_cases(path: Path) -> Iterator[Case]:
    seen: set[str] = set()
    for line, row in _csv_rows(path):
        where = f"{path} line {line}"
        case_id, fault = _usable_id(row["case_id"], where)
        if fault:
            case_id += f" (line {line})"  # two such ids may come out alike
        if case_id in seen:
            raise HnsegError(f"{where}: case id {case_id!r} appears twice; give each case one line")
        seen.add(case_id)
        odd = _drop_odd_paths(row, where)
        ct = path.parent / (row["ct"] or f"{case_id}__CT.nii.gz")
        pet = path.parent / (row["pet"] or f"{case_id}__PT.nii.gz")
        label = path.parent / row["label"] if row.get("label") else None
        factor, wrong = _pet_factor(row.get("pet_factor", ""), where)
        fault = fault or odd or wrong
        yield Case(case_id, ct, pet, label, row.get("center") or center_of(case_id), factor, fault)


def _usable_id(case_id: str, where: str) -> tuple[str, str]:
    """A case id that is a plain file name (percent-encoded if need be), and the fault of the one given."""
    try:
        check_case_id(case_id, where)
    except HnsegError as error:
        encoded = quote(case_id.encode(errors="surrogateescape"), safe="").replace(".", "%2E")
        return encoded[:80], str(error)
    return case_id, ""


def _drop_odd_paths(row: dict[str, str], where: str) -> str:
    """Empty a row's paths that no system call takes, or that no line could show, and say so."""
    odd = [name for name in ("ct", "pet", "label") if CONTROL & set(row.get(name, ""))]
    row.update(dict.fromkeys(odd, ""))
    return f"{where}: control characters in the path of {', '.join(odd)}; rename the file" if odd else ""


def _pet_factor(cell: str, where: str) -> tuple[float | None, str]:
    """The factor in a cell, None for an empty one, and its fault."""
    if not cell:
        return None, ""
    try:
        factor = float(cell)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        return (
            None,
            f"{where}: pet_factor {cell[:30]!r} is no positive number; write what makes SUV of the PET",
        )
    return factor, ""


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column name, stripped; empty lines left out."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip().lower() for name in next(reader, [])]
            header = ["pet" if name == "pt" else name for name in header]
            missing = [name for name in ("case_id", "ct", "pet") if name not in header]
            if missing:
                raise HnsegError(
                    f"{path}: header {','.join(header)!r} lacks {', '.join(missing)}; "
                    "write case_id,ct,pet[,label,center,pet_factor] in the first line"
                )
            for cells in reader:
                values = [cell.strip() for cell in cells]
                if not any(values):
                    continue
                if len(values) > len(header):
                    raise HnsegError(
                        f"{path} line {reader.line_num}: {len(values)} cells under {len(header)} columns; "
                        "quote cells that hold a comma"
                    )
                values += [""] * (len(header) - len(values))
                yield reader.line_num, dict(zip(header, values, strict=True))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise HnsegError(
            f"{path}: cannot be read as CSV ({error}); save it as comma-separated UTF-8"
        ) from error


def _require_sound(cases: list[Case]) -> None:
    for case in cases:
        case.check()
        for part, path in (("CT", case.ct), ("PET", case.pet), ("label", case.label)):
            if path is not None and not _is_file(path):
                raise HnsegError(
                    f"{path}: the {part} of case {case.case_id} is missing; add it or remove the case"
                )


def find_orphans(root: Path) -> list[str]:
    """Folders, image files and head masks in a HECKTOR folder that belong to no case, relative to it."""
    return sorted(str(path.relative_to(root)) for path in _orphans(root))


def _orphans(root: Path) -> Iterator[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders = [path for path in folders if path.name != LOST]
    cases = {folder.name: set(case_files(folder).values()) for folder in folders if folder.name != HEADS}
    yield from _image_files(root)
    for folder in folders:
        if folder.name == HEADS:
            yield from (path for path in _image_files(folder) if _stem(path) not in cases)
        elif not cases[folder.name]:
            yield folder
        else:
            yield from (path for path in _image_files(folder) if path not in cases[folder.name])


def _image_files(folder: Path) -> list[Path]:
    """None of a folder that may not be looked into."""
    with suppress(OSError):
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        return [path for path in files if path.name.lower().endswith(EXTENSIONS)]
    return []


def _stem(path: Path) -> str:
    return next(path.name[: -len(one)] for one in EXTENSIONS if path.name.lower().endswith(one))
