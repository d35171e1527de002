"""Case lists: what a cohort on disk consists of, before a voxel is read."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hnseg.errors import HnsegError

EXTENSIONS = (".nii.gz", ".nii", ".mha")  # in the order in which they are preferred
HEADS = "heads"  # ROOT/heads/CASE.nii.gz: masks for the localiser, not a case
LAYOUT = "ROOT/CASE/CASE__CT.nii.gz, CASE__PT.nii.gz and, where known, CASE.nii.gz"
_NO_CASES = (HEADS, "lost+found")
_SUFFIXES = {"ct": "CT", "pet": "PT"}  # HECKTOR's
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Case:
    """One patient's PET/CT: NIfTI or MetaImage files."""

    case_id: str  # a plain file name, unique in its list
    ct: Path  # HU
    pet: Path  # on a grid of its own
    label: Path | None = None  # on the CT's grid
    center: str = ""  # the hospital
    pet_factor: float | None = None  # makes SUV of the PET; None: it is SUV, or its sidecar has the factor
    fault: str = ""  # why the list's line cannot be used; such a case is only reported

    def check(self) -> None:
        """Raise HnsegError if the case has a fault."""
        if self.fault:
            raise HnsegError(self.fault)


def read_cases(source: Path, *, strict: bool = True) -> list[Case]:
    """List the cases of a cohort.

    Args:
        source: A folder in the HECKTOR layout (a folder CASE with CASE__CT, CASE__PT and perhaps CASE), or a
            CSV with the header `case_id, ct, pet[, label, center, pet_factor]` whose paths are relative to
            its own folder. `pt` is read as `pet`; an empty `ct` or `pet` cell stands for the HECKTOR
            name beside the CSV.
        strict: Refuse a case with a missing file or a faulty line (training); otherwise it fails alone when
            it is read (inference).

    Returns:
        The cases, sorted by case_id. A case's centre is the CSV's `center`, else the part of its name before
        the first '-'.

    Raises:
        HnsegError: No source, no case in it, a malformed CSV, or a case that `strict` refuses.
    """
    source = Path(source)
    if source.is_dir():
        try:
            cases = list(_folder_cases(source))
        except OSError as error:
            raise HnsegError(f"{source}: cannot be read ({error.strerror}); allow it") from error
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
    for case in cases if strict else ():
        case.check()
        for part, path in (("CT", case.ct), ("PET", case.pet), ("label", case.label)):
            if path is not None and not os.access(path, os.F_OK):
                raise HnsegError(
                    f"{path}: the {part} of case {case.case_id} is missing; add it or remove the case"
                )
    return sorted(cases, key=lambda case: case.case_id)


def take_shard(cases: list[Case], shard: str | None) -> list[Case]:
    """Every n-th case from the k-th on, for shard k/n (0/4 to 3/4); all without a shard."""
    if shard is None:
        return cases
    number, _, count = str(shard).partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise HnsegError(f"shard={shard}: write K/N with K from 0 to N-1, such as 0/4")
    return cases[int(number) :: int(count)]


def center_of(case_id: str) -> str:
    """The centre in a HECKTOR case name: CHUM-001 → CHUM; '' for a name without '-'."""
    return case_id.partition("-")[0] if "-" in case_id else ""


def case_files(folder: Path) -> dict[str, Path]:
    """The files of a case folder that belong to the case, under 'ct', 'pet' and 'label'."""
    present = set(folder.iterdir())
    stems = {part: f"{folder.name}__{end}" for part, end in _SUFFIXES.items()} | {"label": folder.name}
    paths = {part: [folder / f"{stem}{end}" for end in EXTENSIONS] for part, stem in stems.items()}
    found = {part: [path for path in candidates if path in present] for part, candidates in paths.items()}
    return {part: files[0] for part, files in found.items() if files}


def mask_file(folder: Path, case_id: str) -> Path:
    """A case's file in a folder of masks: CASE.nii.gz, or with another of `EXTENSIONS` that exists."""
    paths = [folder / f"{case_id}{extension}" for extension in EXTENSIONS]
    return next((path for path in paths if os.access(path, os.F_OK)), paths[0])


def _folder_cases(root: Path) -> Iterator[Case]:
    for number, folder in enumerate(_case_folders(root), 1):
        fault, files = "", {}
        try:
            files = case_files(folder)
        except OSError as error:
            fault = f"{folder}: cannot be read ({error.strerror}); allow it, or move the folder away"
        if not files and not fault:
            continue
        odd = _id_fault(folder.name, str(root))
        case_id = f"folder {number}" if odd else folder.name
        ct, pet = (files.get(part, folder / _hecktor_name(folder.name, part)) for part in _SUFFIXES)
        yield Case(case_id, ct, pet, files.get("label"), center_of(case_id), fault=odd or fault)


def _hecktor_name(case_id: str, part: str) -> str:
    return f"{case_id}__{_SUFFIXES[part]}{EXTENSIONS[0]}"


def _case_folders(root: Path) -> list[Path]:
    folders = (path for path in root.iterdir() if path.is_dir())
    return sorted(path for path in folders if not path.name.startswith(".") and path.name not in _NO_CASES)


def _id_fault(case_id: str, where: str) -> str:
    """What keeps a case id from being a plain file name, as which it becomes part of output paths."""
    plain = case_id.isprintable() and not {"/", "\\"} & set(case_id) and not case_id.startswith(".")
    if plain and 0 < len(case_id.encode()) <= 100:
        return ""
    return f"{where}: case id {case_id[:100]!r} is not a plain file name; rename the case"


def _csv_cases(path: Path) -> Iterator[Case]:
    seen: set[str] = set()
    for line, row in _csv_rows(path):
        where = f"{path} line {line}"
        fault, case_id = _id_fault(row["case_id"], where), row["case_id"]
        if fault:
            case_id = f"line {line}"
        if case_id in seen:
            raise HnsegError(f"{where}: case id {case_id!r} appears twice; give each case one line")
        seen.add(case_id)
        # No system call takes some of them, and no line could name the others.
        if odd := [name for name in ("ct", "pet", "label") if _CONTROL.search(row[name])]:
            row.update(dict.fromkeys(odd, ""))
            fault = fault or f"{where}: control characters in the path of {', '.join(odd)}; rename the file"
        ct, pet = (path.parent / (row[part] or _hecktor_name(case_id, part)) for part in _SUFFIXES)
        label = path.parent / row["label"] if row["label"] else None
        factor = None
        if cell := row["pet_factor"]:
            with suppress(ValueError):
                factor = float(cell)
            if factor is None or not 0 < factor < math.inf:
                wrong = f"pet_factor {cell[:30]!r} is no positive number"
                fault, factor = fault or f"{where}: {wrong}; write what makes SUV of the PET", None
        yield Case(case_id, ct, pet, label, row["center"] or center_of(case_id), factor, fault)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and stripped cells by column name, "" where a cell is missing; empty lines left out."""
    known = ("case_id", "ct", "pet", "label", "center", "pet_factor")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip().lower() for name in next(reader, [])]
            header = ["pet" if name == "pt" else name for name in header]
            if missing := [name for name in known[:3] if name not in header]:
                raise HnsegError(
                    f"{path}: header {','.join(header)!r} lacks {', '.join(missing)}; "
                    "write case_id,ct,pet[,label,center,pet_factor] in the first line"
                )
            for cells in reader:
                values = [cell.strip() for cell in cells]
                if len(values) > len(header):
                    raise HnsegError(
                        f"{path} line {reader.line_num}: {len(values)} cells under {len(header)} columns; "
                        "quote cells that hold a comma"
                    )
                if any(values):
                    yield reader.line_num, dict.fromkeys(known, "") | dict(zip(header, values, strict=False))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise HnsegError(f"{path}: cannot be read ({error}); save it as comma-separated UTF-8") from error


def find_orphans(root: Path) -> list[str]:
    """Folders, image files and head masks in a HECKTOR folder that belong to no case, relative to it."""
    orphans = _image_files(root)
    cases = set()
    for folder in _case_folders(root):
        with suppress(OSError):  # reading the cases names it
            files = set(case_files(folder).values())
            orphans += [path for path in _image_files(folder) if path not in files] if files else [folder]
            cases |= {folder.name} if files else set()
    orphans += [path for path in _image_files(root / HEADS) if stem(path) not in cases]
    return sorted(str(path.relative_to(root)) for path in orphans)


def _image_files(folder: Path) -> list[Path]:
    """Image files in a folder; none if it cannot be read."""
    with suppress(OSError):
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        return [path for path in files if path.name.lower().endswith(EXTENSIONS)]
    return []


def stem(path: Path) -> str:
    """The name of a file without its image extension, or else its last suffix."""
    extension = next((known for known in EXTENSIONS if path.name.lower().endswith(known)), path.suffix)
    return path.name[: len(path.name) - len(extension)]
