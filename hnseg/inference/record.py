"""OUT's tables and masks: what became of each case, and which cases a later call need not segment again.

A case counts as finished when its line in cases.csv says that it was made from the files, the bundle and the
settings of now, and that its mask, maps and lesions are those that were written. The line is withdrawn before
any of them changes and comes back when they are whole, so that a process killed in between leaves no line
that speaks of another mask.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hnseg
from hnseg.cases import Case
from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.images import write_image
from hnseg.inference.cascade import Cascade
from hnseg.inference.lesions import Lesion, write_lesions
from hnseg.inference.outcome import COLUMNS, Outcome
from hnseg.inference.segmentation import Segmentation
from hnseg.models.bundle import LISTING, digest
from hnseg.suv import sidecar

TABLE, LESIONS, MAPS = "cases.csv", "lesions.csv", "maps"
FORMATS = (".nii.gz", ".mha")  # of masks and maps


class Record:
    """What earlier calls and this one wrote into a folder.

    Args:
        out: The folder.
        extension: Of masks and maps, one of `FORMATS`.
        heads: The masks are heads: they have no lesions, and those of cases that fail now stay, since they
            may have been drawn, or corrected, by hand.

    Raises:
        HnsegError: cases.csv or lesions.csv is something else.
    """

    def __init__(self, out: Path, extension: str, *, heads: bool = False) -> None:
        self._out, self._extension, self._heads = out, extension, heads
        self._rows = {row["case_id"]: row for row in _read(out / TABLE, "status")}
        self._lesions: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in _read(out / LESIONS, "lesion"):
            self._lesions[row["case_id"]].append(row)

    def holds(self, case_id: str, made_from: str) -> bool:
        """Whether what lies there for a case is the whole and untouched result of what has this digest."""
        row = self._rows.get(case_id, {})
        same = row.get("made_from") == made_from and self._mask(case_id).is_file()
        return same and row.get("written") == self._digest(case_id)

    def withdraw(self, case_id: str) -> None:
        """Says of a case that its files may be anything."""
        self._put({"case_id": case_id, "status": "unfinished"})

    def write(self, case_id: str, result: Segmentation) -> str:
        """Writes a case's mask, maps and lesions, and returns the digest of them all."""
        write_image(result.mask, self._mask(case_id))
        if not self._heads:
            self._remove_masks(case_id, {*FORMATS} - {self._extension})
        shutil.rmtree(self._maps(case_id), ignore_errors=True)
        for name, image in result.volumes():
            write_image(image, self._maps(case_id) / f"{name}{self._extension}")
        self._write_lesions(case_id, result.lesions)
        return self._digest(case_id)

    def remove(self, case_id: str) -> None:
        """Removes what an earlier call wrote for a case, which would pass for this one's."""
        if not self._heads:
            self._remove_masks(case_id, {*FORMATS})
        shutil.rmtree(self._maps(case_id), ignore_errors=True)
        self._write_lesions(case_id, [])

    def put(self, outcome: Outcome) -> None:
        """Writes a case's line; it replaces an earlier one."""
        self._put(outcome.row)

    def _mask(self, case_id: str) -> Path:
        return self._out / f"{case_id}{self._extension}"

    def _maps(self, case_id: str) -> Path:
        return self._out / MAPS / case_id

    def _remove_masks(self, case_id: str, extensions: set[str]) -> None:
        for extension in extensions:
            (self._out / f"{case_id}{extension}").unlink(missing_ok=True)

    def _write_lesions(self, case_id: str, lesions: list[Lesion]) -> None:
        if not self._heads:
            write_lesions({case_id: lesions}, self._out / LESIONS)
            self._lesions[case_id] = [{"case_id": case_id, **lesion.row} for lesion in lesions]

    def _digest(self, case_id: str) -> str:
        files = [self._mask(case_id), *sorted(self._maps(case_id).glob("*"))]
        return _hash([[(path.name, digest(path)) for path in files], self._lesions[case_id]])

    def _put(self, row: dict[str, str]) -> None:
        self._rows[row["case_id"]] = row
        with (
            replacing(self._out / TABLE) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self._rows[case_id] for case_id in sorted(self._rows))


def made_from(case: Case, cascade: Cascade, extension: str) -> str:
    """Digest of everything that a case's mask depends on.

    Files count by path, size and time of change, the bundle by the hashes it lists.
    """
    content = {
        "version": hnseg.__version__,
        "files": [_state(path) for path in _files(case, cascade.heads)],
        "pet_factor": case.pet_factor,
        "bundle": digest(cascade.bundle.path / LISTING),
        "members": [member.card["name"] for member in cascade.bundle.members],
        "rules": asdict(cascade.decision),
        "until": cascade.names[-1],
        "unseen": cascade.unseen,
        "precision": cascade.precision,
        "device": cascade.networks.device.type,
        "engine": type(cascade.networks).__name__,
        "maps": [cascade.probabilities, cascade.uncertainty],
        "extension": extension,
    }
    return _hash(content)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(case: Case, heads: Path | None) -> Iterator[Path]:
    yield from (case.ct, case.pet)
    with suppress(HnsegError):  # a misnamed PET has no sidecar, and is refused when it is read
        yield sidecar(case.pet)
    if heads is not None:
        yield heads / f"{case.case_id}.nii.gz"


def _state(path: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except OSError:  # missing, or beyond reach: told when it is read
        return None
    return os.path.realpath(path), status.st_size, status.st_mtime_ns


def _read(path: Path, column: str) -> list[dict[str, str]]:
    """The rows of a table that this module wrote, told by a column."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise HnsegError(f"{path}: cannot be read ({error}); choose another folder for out") from error
    if not {"case_id", column} <= set(reader.fieldnames or ()):
        raise HnsegError(f"{path}: has no columns case_id and {column}; choose another folder for out")
    return rows
