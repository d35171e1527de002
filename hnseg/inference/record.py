"""OUT's tables and masks: what became of each case, and which cases a later call need not segment again.

A case counts as finished when its line in cases.csv says that it was made from the files, the bundle and the
settings of now, and that its mask, maps and lesions are those that were written. The line is withdrawn before
any of them changes and comes back when they are whole, so that a process killed in between leaves no line
that speaks of another mask.
"""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hnseg.errors import HnsegError
from hnseg.files import place, replacing
from hnseg.inference.lesions import Lesion, write_lesions
from hnseg.inference.outcome import COLUMNS, Outcome
from hnseg.inference.provenance import content_digest
from hnseg.inference.work import MAPS, Made
from hnseg.models.bundle import digest

TABLE, LESIONS = "cases.csv", "lesions.csv"
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

    def is_stranger(self, case_id: str) -> bool:
        """Whether a mask lies there that no call of infer.py wrote, drawn by hand perhaps."""
        there = any((self._out / f"{case_id}{extension}").exists() for extension in FORMATS)
        return there and case_id not in self._rows

    def take(self, made: Made) -> Outcome:
        """Puts what was made of a case in its place; without a mask, an earlier one is removed.

        Raises:
            HnsegError: The folder's tables cannot be written.
        """
        case_id, outcome = made.outcome.case_id, made.outcome
        self._put({"case_id": case_id, "status": "unfinished"})  # from here on its files may be anything
        if outcome.status == "ok":
            try:
                outcome = replace(outcome, written=self._place(made))
            except (HnsegError, OSError) as error:
                outcome = Outcome(case_id, "error", outcome.seconds, outcome.memory_mib, message=str(error))
        if outcome.status == "error":
            try:
                self._remove(case_id)
            except OSError as error:
                left = f"{error.filename} cannot be removed ({error.strerror})"
                outcome = replace(outcome, message=f"{outcome.message}; {left}")
        self._put(outcome.row)
        return outcome

    def _place(self, made: Made) -> str:
        """Puts a case's mask, maps and lesions in their places, and returns the digest of them all."""
        case_id = made.outcome.case_id
        (mask, *maps) = made.files.items()
        place(*mask)
        if not self._heads:
            self._remove_masks(case_id, {*FORMATS} - {self._extension})
        shutil.rmtree(self._maps(case_id), ignore_errors=True)
        for one in maps:
            place(*one)
        self._write_lesions(case_id, made.lesions)
        return self._digest(case_id)

    def _remove(self, case_id: str) -> None:
        """Removes what an earlier call wrote for a case, which would pass for this one's."""
        if not self._heads:
            self._remove_masks(case_id, {*FORMATS})
        shutil.rmtree(self._maps(case_id), ignore_errors=True)
        self._write_lesions(case_id, [])

    def _mask(self, case_id: str) -> Path:
        return self._out / f"{case_id}{self._extension}"

    def _maps(self, case_id: str) -> Path:
        return self._out / MAPS / case_id

    def _remove_masks(self, case_id: str, extensions: set[str]) -> None:
        for extension in extensions:
            (self._out / f"{case_id}{extension}").unlink(missing_ok=True)

    def _write_lesions(self, case_id: str, lesions: Sequence[Lesion]) -> None:
        if not self._heads:
            write_lesions({case_id: lesions}, self._out / LESIONS)
            self._lesions[case_id] = [{"case_id": case_id, **lesion.row} for lesion in lesions]

    def _digest(self, case_id: str) -> str:
        files = [self._mask(case_id), *sorted(self._maps(case_id).glob("*"))]
        return content_digest([[(path.name, digest(path)) for path in files], self._lesions[case_id]])

    def _put(self, row: dict[str, str]) -> None:
        self._rows[row["case_id"]] = row
        with (
            replacing(self._out / TABLE) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self._rows[case_id] for case_id in sorted(self._rows))


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
