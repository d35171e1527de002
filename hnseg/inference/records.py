"""What a folder of masks holds of each case, and the tables cases.csv and lesions.csv made from it.

OUT/CASE.json is a case's record, beside its mask and written last: the case is done when it is there. The
folder OUT/.CASE is there while a process works on the case, and outlives one that dies of it. It holds
`lock`, free once that process has ended, `attempt-N.json` of every time that work began, the last of which
becomes the record, and whatever is being written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hnseg.errors import HnsegError
from hnseg.files import digest_file, lock, read_table, remove_leftovers, replacing, write_table
from hnseg.imaging.case import EXTENSIONS
from hnseg.imaging.placement import Fallback
from hnseg.inference.ensemble import MAPS
from hnseg.inference.lesions import COLUMNS as LESION_COLUMNS
from hnseg.inference.lesions import Lesion

CASES, LESIONS = "cases.csv", "lesions.csv"
STEPS = ("read", "resample", "head", "coarse", "fine", "back", "write")
COLUMNS = [
    *("case_id", "status", "seconds", *(f"{step}_s" for step in STEPS), "memory_mib", "gpu_mib"),
    *("out_of_fold", "lesions", "lesion_ml_outside_roi", "fallback", "review_reason", "message"),
]
FORMATS = (".nii.gz", ".mha")  # of masks and maps


@dataclass(frozen=True)
class Record:
    """What became of one case.

    Args:
        case_id: The case.
        status: Whether there is a mask.
        digest: Of all that the mask depends on: the case's files, the bundle, the rules, the settings.
        bundle: Digest of the bundle's members.
        stage: The last stage that ran: head, coarse or fine.
        rules: The decision by which the mask was made.
        out_of_fold: Whether no network that made the mask was trained on the case.
        mask: Name of the mask's file.
        mask_sha256: Of that file as it was written.
        mask_mtime_ns: Its time of change when it was written.
        roi: The grids on which the last stage looked, as `Grid.to_dict` gives them.
        fallbacks: What placed an ROI where the stage before found nothing.
        lesions: Of the mask.
        lesion_ml_outside_roi: Coarse lesion that the fine stage did not look at, ml; None without fine stage.
        review_reasons: Why a reader should look at the case before others.
        message: Why there is no mask, or what to know of the scan.
        seconds: Time of each step. Steps of different cases overlap.
        memory_mib: The most memory that the process has had so far.
        gpu_mib: The most memory that the case took on the GPU; None without a GPU.
    """

    case_id: str
    status: Literal["ok", "error"]
    digest: str
    bundle: str
    stage: str
    rules: dict[str, Any] = field(default_factory=dict)
    out_of_fold: bool | None = None
    mask: str = ""
    mask_sha256: str = ""
    mask_mtime_ns: int = 0
    roi: list[dict[str, list[float]]] = field(default_factory=list)
    fallbacks: list[Fallback] = field(default_factory=list)
    lesions: list[Lesion] = field(default_factory=list)
    lesion_ml_outside_roi: float | None = None
    review_reasons: list[str] = field(default_factory=list)
    message: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    memory_mib: float | None = None
    gpu_mib: float | None = None

    @property
    def row(self) -> dict[str, str]:
        """Its line of cases.csv, by column."""
        return {
            "case_id": self.case_id,
            "status": self.status,
            "seconds": f"{sum(self.seconds.values()):.2f}",
            **{f"{step}_s": _number(self.seconds.get(step)) for step in STEPS},
            "memory_mib": _number(self.memory_mib, 0),
            "gpu_mib": _number(self.gpu_mib, 0),
            "out_of_fold": {None: "", True: "yes", False: "no"}[self.out_of_fold],
            "lesions": str(len(self.lesions)) if self.status == "ok" and self.stage != "head" else "",
            "lesion_ml_outside_roi": _number(self.lesion_ml_outside_roi),
            "fallback": "; ".join(self.fallbacks),
            "review_reason": "; ".join(self.review_reasons),
            "message": self.message,
        }

    def to_json(self) -> bytes:
        """The content of its file."""
        return _ADAPTER.dump_json(self, indent=1)


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


_ADAPTER = TypeAdapter(Record)


def record_file(out: Path, case_id: str) -> Path:
    """Where a case's record lies in a folder of masks."""
    return out / f"{case_id}.json"


def read_record(path: Path) -> Record | None:
    """A record; None where there is none, or a file of something else."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_records(out: Path) -> dict[str, Record]:
    """All records of a folder by case, sorted."""
    found = filter(None, map(read_record, out.glob("[!.]*.json")))
    return {record.case_id: record for record in sorted(found, key=lambda record: record.case_id)}


def write_tables(out: Path) -> None:
    """Makes OUT/cases.csv and OUT/lesions.csv from all records in OUT, whichever process wrote them.

    Raises:
        HnsegError: They cannot be written.
    """
    with lock(out, wait=True):  # who has it last has read every process's records
        remove_leftovers(out)  # the tables alone are written in OUT itself
        records = read_records(out).values()
        write_table(out / CASES, COLUMNS, (record.row for record in records))
        lesions = ({"case_id": one.case_id, **lesion.row} for one in records for lesion in one.lesions)
        write_table(out / LESIONS, LESION_COLUMNS, lesions)


def require_own_tables(out: Path) -> None:
    """Refuses a folder in which one of the tables is something else, a case list for instance.

    Raises:
        HnsegError: It is.
    """
    for name, columns in ((CASES, COLUMNS[:2]), (LESIONS, LESION_COLUMNS[:2])):
        read_table(out / name, "choose another folder for out", columns)


class CaseFiles:
    """The files of one case in a folder of masks: its record, mask and maps, and the work on them.

    Args:
        out: The folder.
        failed: The record that the case has if nothing comes of it.
        anew_since: Seconds since the epoch; what was made before counts for nothing, and masks that somebody
            has changed may be replaced. None lets it count.
    """

    def __init__(self, out: Path, failed: Record, anew_since: float | None = None) -> None:
        self.out, self.failed, self.anew_since = out, failed, anew_since
        self.case_id = case_id = failed.case_id
        self.work, self.maps = out / f".{case_id}", out / "maps" / case_id
        self._record, self._attempt = record_file(out, case_id), self.work / "error.json"
        self._lock = FileLock(self.work / "lock", timeout=0, thread_local=False)

    def finished(self) -> Record | None:
        """The record of a mask that was made from the same and is there; None where it must be made."""
        record = read_record(self._record)
        if record is None or (record.status, record.digest) != ("ok", self.failed.digest):
            return None
        return record if (self.out / record.mask).is_file() and self._counts(self._record) else None

    def is_newer_than(self, moment: float) -> bool:
        """Whether the record was written after a moment, in seconds since the epoch."""
        return self._record.stat().st_mtime >= moment

    def changed_mask(self) -> Path | None:
        """A mask of the case that is not as it was written here, CASE.nii and other formats included."""
        return next((path for path in self._masks(EXTENSIONS) if not self._is_ours(path)), None)

    def claim(self) -> bool:
        """Takes the case; False where another process works on it."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def tidy(self) -> None:
        """Removes what a process has left that died when the case was done."""
        if not self._lock.is_locked and self.work.exists() and self.claim():
            self.release()

    def attempts(self) -> int:
        """How often work on the same case began and did not end."""
        begun = self._entries("attempt-*.json")
        return sum(entry.get("digest") == self.failed.digest for path, entry in begun if self._counts(path))

    def begin(self) -> None:
        """Leaves a mark that stays if the process dies of the case."""
        number = len([*self.work.glob("*.json")]) + 1
        self._attempt = self.work / f"attempt-{number}.json"
        with self._attempt.open("x") as file:
            json.dump({"digest": self.failed.digest}, file)

    def place(self, record: Record, mask: Path | None = None, maps: Sequence[Path] = ()) -> None:
        """Puts mask and maps, then the record, in place of those of an earlier call.

        At every moment the mask there is that of the record there, if there is one.

        Args:
            record: What became of the case.
            mask: In `work`, named as in the folder; None where there is none, and what was made here goes.
            maps: In `work`, named as in their folder.

        Raises:
            HnsegError: Somebody has put another mask there meanwhile.
            OSError: The folder cannot be written.
        """
        if mask is not None:
            if self.anew_since is None and (other := self.changed_mask()):
                raise HnsegError(
                    f"{other.name} was put there meanwhile, and stays; overwrite=true replaces it"
                )
            changed = mask.stat().st_mtime_ns
            record = replace(record, mask=mask.name, mask_sha256=digest_file(mask), mask_mtime_ns=changed)
        with replacing(self._attempt) as temporary:
            temporary.write_bytes(record.to_json())
        with suppress(FileNotFoundError):
            self._record.replace(self.work / "previous.json")
        for path in self._masks(FORMATS):
            if self._is_ours(path) or (mask is not None and path.name != mask.name):
                path.unlink()
        self._remove_maps()
        for path in maps:
            self.maps.mkdir(parents=True, exist_ok=True)
            path.replace(self.maps / path.name)
        if mask is not None:
            mask.replace(self.out / mask.name)
        self._attempt.replace(self._record)

    def release(self, *, forget: bool = True) -> None:
        """Ends the work on the case.

        Args:
            forget: Whether no attempt has to be remembered, because the case is done; else the present one is
                taken back, which has not ended the process.
        """
        if not self._lock.is_locked:
            return
        for path in self.work.iterdir():
            remembered = path.suffix == ".json" and path != self._attempt and not forget
            if not remembered and path.name != "lock":
                path.unlink()
        self._lock.release()
        with suppress(OSError):  # another process has just come in
            if not any(self.work.glob("attempt-*.json")):
                (self.work / "lock").unlink()
                self.work.rmdir()

    def _entries(self, pattern: str = "*.json") -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in self.work.glob(pattern):
            with suppress(OSError, ValueError):
                yield path, json.loads(path.read_bytes())

    def _counts(self, path: Path) -> bool:
        return self.anew_since is None or path.stat().st_mtime >= self.anew_since

    def _masks(self, extensions: Sequence[str]) -> list[Path]:
        paths = (self.out / f"{self.case_id}{extension}" for extension in extensions)
        return [path for path in paths if path.is_file()]

    def _is_ours(self, path: Path) -> bool:
        record = read_record(self._record)
        if record and (record.mask, record.mask_mtime_ns) == (path.name, path.stat().st_mtime_ns):
            return True
        entries = [entry for _, entry in self._entries()]
        known = {entry.get("mask_sha256") for entry in entries} | {record.mask_sha256 if record else None}
        return digest_file(path) in known

    def _remove_maps(self) -> None:
        names = ("probability_*", *MAPS)
        found = [path for name in names for end in FORMATS for path in self.maps.glob(f"{name}{end}")]
        for path in found:
            path.unlink()
        if found:
            with suppress(OSError):  # something else lies there too
                self.maps.rmdir()
