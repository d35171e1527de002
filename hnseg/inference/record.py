"""OUT's tables and masks: what became of each case, and which cases a later call need not segment again.

A case counts as finished when its line in cases.csv says that it was made from the files, the bundle and the
settings of now, and that its mask, maps and lesions are those that were written. The line is withdrawn before
any of them changes and comes back when they are whole, so that a process killed in between leaves no line
that speaks of another mask. A file that differs from what its line says was written is somebody's work: it is
told, and stays.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from hnseg.errors import HnsegError
from hnseg.files import digest, place, read_table, replacing
from hnseg.inference.lesions import Lesion, read_lesions, write_lesions
from hnseg.inference.outcome import COLUMNS, Outcome
from hnseg.inference.outputs import FORMATS, Outputs
from hnseg.inference.work import Made

TABLE, LESIONS = "cases.csv", "lesions.csv"
# What a line says of a case that is not done: how often work on it began; that its files may be anything.
BEGUN = ("begun", "begun again")
UNFINISHED = "unfinished"
_ELSEWHERE = "choose another folder for out"
# What lies there for a case: its whole result, nothing that must stay, or files of somebody else.
Standing = Literal["finished", "open", "foreign"]


class Record:
    """What earlier calls and this one wrote into a folder.

    Args:
        out: The folder.
        extension: Of masks and maps, one of `FORMATS`.
        heads: The masks are heads: they have no lesions, and those of cases that fail now stay, since they
            may have been drawn by hand.
        overwrite: Files that are not as they were written may be replaced.

    Raises:
        HnsegError: cases.csv or lesions.csv is something else.
    """

    def __init__(self, out: Path, extension: str, *, heads: bool = False, overwrite: bool = False) -> None:
        self._out, self._extension, self._heads, self._overwrite = out, extension, heads, overwrite
        self._files = Outputs(out)
        self._before_begun: dict[str, dict[str, str]] = {}
        _, rows = read_table(out / TABLE, _ELSEWHERE, ("case_id", "status"))
        self._rows = {row["case_id"]: row for row in rows}
        self._lesions: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in read_lesions(out / LESIONS):
            self._lesions[row["case_id"]].append(row)

    def standing(self, case_id: str, made_from: str) -> Standing:
        """What lies there for a case, which would be made from what has this digest."""
        row, there = self._rows.get(case_id, {}), self._files.digests(case_id)
        if self._foreign(case_id, there):
            return "foreign"
        same = row.get("status") == "ok" and row.get("made_from") == made_from
        whole = f"{case_id}{self._extension}" in there
        whole = whole and _entries(row) == there | self._lesions_digest(case_id)
        return "finished" if same and whole else "open"

    def begun(self, case_id: str) -> int:
        """How often work on a case began and its end was never told, counted to two."""
        status = self._rows.get(case_id, {}).get("status")
        return BEGUN.index(status) + 1 if status in BEGUN else int(status == UNFINISHED)

    def begin(self, case_id: str) -> None:
        """Notes that work on a case begins: should the process die of it, a later call puts it last."""
        row = self._rows.get(case_id, {})
        if row.get("status") != UNFINISHED:
            self._before_begun.setdefault(case_id, row)  # of a second try it is the first's
            status = BEGUN[row.get("status") in BEGUN]
            older = json.dumps(self._files.digests(case_id)) if _is_older(row) else ""
            self._put({"case_id": case_id, "status": status, "written": older or row.get("written", "")})

    def release(self) -> None:
        """Takes back what was noted of cases that are not done: the call ends in order, by none of them.

        Raises:
            HnsegError: cases.csv cannot be written.
        """
        for case_id, row in self._before_begun.items():
            self._rows[case_id] = row
        self._rows = {case_id: row for case_id, row in self._rows.items() if row}
        self._write()

    def take(self, made: Made) -> Outcome:
        """Puts what was made of a case in its place; without a mask, an earlier one is removed.

        Raises:
            HnsegError: The folder's tables cannot be written.
        """
        case_id, outcome = made.outcome.case_id, made.outcome
        there = self._files.digests(case_id)
        foreign = self._foreign(case_id, there)
        self._before_begun.pop(case_id, None)
        if foreign and not self._overwrite:
            outcome = _give_up(made, foreign[0])
        # From here on its files may be anything, but for those of somebody else.
        self._put({"case_id": case_id, "status": UNFINISHED})
        kept = {name: there[name] for name in there if name not in foreign}
        if outcome.status == "ok":
            outcome = self._place(made, kept)
        if outcome.status == "error":
            outcome = self._clear(outcome, kept, foreign)
        self._put(outcome.row)
        return outcome

    def _place(self, made: Made, kept: Mapping[str, str]) -> Outcome:
        """Puts a case's mask, maps and lesions in their places, and notes the digests of what is ours."""
        case_id = made.outcome.case_id
        (mask, *maps) = made.files.items()
        try:
            place(*mask)
            if not self._heads:
                self._files.remove_masks(case_id, {*FORMATS} - {self._extension})
            self._files.remove_maps(case_id)
            for one in maps:
                place(*one)
            self._write_lesions(case_id, made.lesions)
        except (HnsegError, OSError) as error:
            return made.outcome.failed(str(error))
        placed = {self._files.name(path) for path in made.files.values()}
        written = self._known(case_id, kept, placed) | self._lesions_digest(case_id)
        return replace(made.outcome, written=json.dumps(written))

    def _clear(self, outcome: Outcome, kept: Mapping[str, str], foreign: Sequence[str]) -> Outcome:
        """Removes what an earlier call wrote for a case that failed, which would pass for this one's."""
        case_id = outcome.case_id
        try:
            if not self._heads:
                self._files.remove_masks(case_id, but=foreign)
            self._files.remove_maps(case_id, but=foreign)
            self._write_lesions(case_id, [])
        except OSError as error:
            left = f"{error.filename} cannot be removed ({error.strerror})"
            outcome = replace(outcome, message=f"{outcome.message}; {left}")
        stay = self._known(case_id, kept)
        return replace(outcome, written=json.dumps(stay) if stay else "")

    def _foreign(self, case_id: str, there: Mapping[str, str]) -> list[str]:
        """Those files of a case that are not as its line says they were written."""
        row = self._rows.get(case_id, {})
        if row.get("status") == UNFINISHED or _is_older(row):
            return []
        written = _entries(row)
        return [name for name in there if written.get(name) != there[name]]

    def _known(self, case_id: str, kept: Mapping[str, str], placed: Collection[str] = ()) -> dict[str, str]:
        """Digests of a case's files that were placed now, or are there unchanged."""
        there = self._files.digests(case_id)
        return {name: there[name] for name in there if name in placed or kept.get(name) == there[name]}

    def _write_lesions(self, case_id: str, lesions: Sequence[Lesion]) -> None:
        if not self._heads:
            write_lesions({case_id: lesions}, self._out / LESIONS)
            self._lesions[case_id] = [{"case_id": case_id, **lesion.row} for lesion in lesions]

    def _lesions_digest(self, case_id: str) -> dict[str, str]:
        return {LESIONS: digest(self._lesions[case_id], 64)}

    def _put(self, row: dict[str, str]) -> None:
        self._rows[row["case_id"]] = row
        self._write()

    def _write(self) -> None:
        with (
            replacing(self._out / TABLE) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self._rows[case_id] for case_id in sorted(self._rows))


def _give_up(made: Made, name: str) -> Outcome:
    """What becomes of a case with a file of somebody else; what was made of it goes."""
    for temporary in made.files:
        temporary.unlink(missing_ok=True)
    reason = f"{name} was put there meanwhile, and stays; move it away, or set overwrite=true"
    return made.outcome.failed(reason)


def _entries(row: Mapping[str, str]) -> dict[str, str]:
    """The digests in a line, by file."""
    try:
        entries = json.loads(row.get("written") or "{}")
    except ValueError:
        return {}
    return entries if isinstance(entries, dict) else {}


def _is_older(row: Mapping[str, str]) -> bool:
    """Whether an older hnseg wrote a finished case's line, which does not tell its files."""
    return row.get("status") == "ok" and not _entries(row)
