"""What a folder of masks holds of each case, and the tables cases.csv and lesions.csv made from it.

OUT/CASE.json is a case's record, beside its mask and written last: the case is done when it is there. The
folder OUT/.CASE is there while a process works on the case, and outlives a process that dies of it. It holds
`lock`, free once that process has ended, `attempts` with a line for every time that work began, and whatever
is being written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from os.path import realpath
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from hnseg.card import Decision
from hnseg.errors import HnsegError
from hnseg.files import digest_file, lock, read_table, remove_leftovers, replacing, write_table
from hnseg.imaging.case import EXTENSIONS, Case
from hnseg.imaging.placement import Fallback
from hnseg.inference.ensemble import MAPS
from hnseg.inference.lesions import COLUMNS as LESION_COLUMNS
from hnseg.inference.lesions import Lesion

CASES, LESIONS = "cases.csv", "lesions.csv"
STEPS = ("read", "resample", "localiser", "coarse", "fine", "back", "write")
COLUMNS = [
    *("case_id", "status", "seconds", *(f"{step}_s" for step in STEPS), "memory_mib", "gpu_mib"),
    *("out_of_fold", "lesions", "lesion_ml_outside_roi", "fallback", "review_reason", "message"),
]
FORMATS = (".nii.gz", ".mha")  # of masks and maps


@dataclass(frozen=True)
class Record:
    """What became of a case."""

    case_id: str
    status: Literal["ok", "error"]  # whether there is a mask
    digest: str  # of all that the mask depends on: the case's files, the bundle, the rules, the settings
    bundle: str  # digest of the bundle's members
    stage: str  # the last that ran: localiser, coarse or fine
    rules: Decision | None = None  # the decision by which the mask was made
    out_of_fold: bool | None = None  # whether no network but the localiser was trained on the case
    mask: str = ""  # name of the mask's file
    mask_sha256: str = ""  # of that file as it was written
    roi: list[dict[str, list[float]]] = field(default_factory=list)  # grids of the last stage, `Grid.to_dict`
    fallbacks: list[Fallback] = field(default_factory=list)  # what placed an ROI where nothing was found
    lesions: list[Lesion] = field(default_factory=list)
    lesion_ml_outside_roi: float | None = None  # coarse lesion that the fine stage did not look at
    review_reasons: list[str] = field(default_factory=list)  # why a reader should look at the case first
    message: str = ""  # why there is no mask, or what to know of the scan
    seconds: dict[str, float] = field(default_factory=dict)  # of each step; steps of different cases overlap
    memory_mib: float | None = None  # the most that the process has had so far
    gpu_mib: float | None = None  # the most that the case took on the GPU; None without a GPU

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
            "lesions": str(len(self.lesions)) if self.status == "ok" and self.stage != "localiser" else "",
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
    """Makes OUT/cases.csv and OUT/lesions.csv from all records in OUT, whichever process wrote them."""
    with lock(out, wait=True):  # who has it last has read every process's records
        remove_leftovers(out)  # the tables alone are written in OUT itself
        records = read_records(out).values()
        write_table(out / CASES, COLUMNS, (record.row for record in records))
        lesions = (
            {"case_id": record.case_id, **lesion.row} for record in records for lesion in record.lesions
        )
        write_table(out / LESIONS, LESION_COLUMNS, lesions)


class CaseFiles:
    """The files of one case in a folder of masks: its record, mask and maps, and the work on them.

    Args:
        out: The folder.
        blank: What every record of the case has in this call; an error without a message.
        overwrite_before: With overwrite=true, when the call began, in seconds since the epoch: records and
            attempts of earlier calls do not count, and any mask may be replaced.
    """

    def __init__(self, out: Path, blank: Record, overwrite_before: float | None = None) -> None:
        self.out, self.blank, self.overwrite_before = out, blank, overwrite_before
        self.case_id = case_id = blank.case_id
        self.work, self._maps = out / f".{case_id}", out / "maps" / case_id
        self._record, self._attempts = record_file(out, case_id), self.work / "attempts"
        self._lock = FileLock(self.work / "lock", timeout=0, thread_local=False)

    def is_finished(self) -> bool:
        """Whether the case has a mask that was made from the same."""
        record = read_record(self._record)
        if record is None or (record.status, record.digest) != ("ok", self.blank.digest):
            return False
        return (self.out / record.mask).is_file() and self._counts(self._record)

    def claim(self) -> bool:
        """Takes the case; False where another process works on it."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def attempts(self) -> int:
        """How often work on the same case began and did not end."""
        if not self._counts(self._attempts):
            return 0
        return self._attempts.read_text().split().count(self.blank.digest)

    def begin(self) -> None:
        """Leaves a line that stays if the process dies of the case."""
        with self._attempts.open("a" if self._counts(self._attempts) else "w") as file:
            print(self.blank.digest, file=file)

    def require_replaceable(self) -> None:
        """Keeps a mask that was changed or put there by hand, CASE.nii and other formats included.

        Raises:
            HnsegError: There is one, and it may not be replaced.
        """
        if self.overwrite_before is None:
            for path in self._masks(EXTENSIONS):
                if not self._is_ours(path):
                    raise HnsegError(
                        f"{path.name} is not as hnseg infer wrote it; move it away, or replace it with "
                        "overwrite=true"
                    )

    def place(self, record: Record, mask: Path | None = None, maps: Sequence[Path] = ()) -> None:
        """Puts mask and maps, then the record, in place of those of an earlier call.

        At every moment the mask on disk is that of the record on disk, if there is a record.

        Args:
            record: What became of the case.
            mask: In `work`, named as in the folder; None where there is none, and what was made here goes.
            maps: In `work`, named as in their folder.

        Raises:
            HnsegError: As `require_replaceable`, or the folder cannot be written.
        """
        if mask is not None:
            self.require_replaceable()
            record = replace(record, mask=mask.name, mask_sha256=digest_file(mask))
        new, previous = self.work / "record.json", self.work / "previous.json"
        with replacing(
            new
        ) as temporary:  # killed before the end, the next call knows both masks by their records
            temporary.write_bytes(record.to_json())
        with suppress(FileNotFoundError):
            self._record.replace(previous)
        for path in self._masks(FORMATS):
            if self._is_ours(path) or (mask is not None and path.name != mask.name):
                path.unlink()
        self._remove_maps()
        for path in maps:
            self._maps.mkdir(parents=True, exist_ok=True)
            path.replace(self._maps / path.name)
        if mask is not None:
            mask.replace(self.out / mask.name)
        new.replace(self._record)

    def release(self, attempts: int = 0) -> None:
        """Ends the work on the case, and remembers so many attempts that ended their process."""
        if not self._lock.is_locked:
            return
        for path in self.work.iterdir():
            if path.name != "lock":
                path.unlink()
        if attempts:
            self._attempts.write_text(f"{self.blank.digest}\n" * attempts)
        self._lock.release()
        if not attempts:
            with suppress(OSError):  # another process has just come in
                (self.work / "lock").unlink()
                self.work.rmdir()

    def _counts(self, path: Path) -> bool:
        """Whether a file is there and not of a call before one with overwrite=true."""
        before = self.overwrite_before
        return path.exists() and (before is None or path.stat().st_mtime >= before)

    def _masks(self, extensions: Sequence[str]) -> list[Path]:
        paths = (self.out / f"{self.case_id}{extension}" for extension in extensions)
        return [path for path in paths if path.is_file()]

    def _is_ours(self, path: Path) -> bool:
        records = map(read_record, [self._record, *self.work.glob("*.json")])
        return digest_file(path) in [record.mask_sha256 for record in records if record]

    def _remove_maps(self) -> None:
        names = ("probability_*", *MAPS)
        found = [path for name in names for end in FORMATS for path in self._maps.glob(f"{name}{end}")]
        for path in found:
            path.unlink()
        if found:
            with suppress(OSError):  # something else lies there too
                self._maps.rmdir()


@dataclass(frozen=True)
class Outcome:
    """What a call has to say of a case."""

    out: Path  # the folder
    case_id: str
    # skipped: its mask was finished before; elsewhere: another process has it
    status: Literal["ok", "error", "skipped", "elsewhere"]
    message: str = ""  # why there is no mask, or what to know of it


Report = Callable[[Outcome], None]  # from any thread


_REFRESH_S = 5.0  # how often the tables are written while the list runs, at most
_REFRESH_SHARE = 0.02  # of the time that writing them may take: it reads all records


@contextmanager
def reporting(cases: Sequence[Case], folders: Sequence[Path]) -> Iterator[tuple[Report, list[Outcome]]]:
    """Checks the folders, shows progress, and makes the tables every few seconds and at the end.

    Yields:
        What to call with each outcome, and the list of those outcomes.

    Raises:
        HnsegError: A folder cannot be written, or holds images of the case list under the masks' names, or
            tables that are not hnseg's.
    """
    for out in folders:
        _require_usable(out, cases)
    outcomes: list[Outcome] = []
    one_at_a_time, due = Lock(), monotonic() + _REFRESH_S
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn()
    with Progress("Segmenting", *columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(cases) * len(folders))

        def report(outcome: Outcome) -> None:
            nonlocal due
            with one_at_a_time:
                outcomes.append(outcome)
                progress.advance(bar)
                if outcome.message:
                    style = "red" if outcome.status == "error" else "yellow"
                    text = escape(f"{outcome.case_id}: {outcome.status}: {outcome.message}")
                    progress.console.print(f"[{style}]{text}[/]", soft_wrap=True, highlight=False)
                if (start := monotonic()) > due:
                    write_tables(outcome.out)
                    due = monotonic() + max(_REFRESH_S, (monotonic() - start) / _REFRESH_SHARE)

        try:
            yield report, outcomes
        finally:
            for out in folders:
                write_tables(out)


def _require_usable(out: Path, cases: Sequence[Case]) -> None:
    # realpath passes over links that lead in a circle; resolve would end the call for one case's sake.
    images = {realpath(path) for case in cases for path in (case.ct, case.pet, case.label) if path}
    for case in cases:
        for extension in FORMATS:
            name = f"{case.case_id}{extension}"
            if realpath(out / name) in images:
                raise HnsegError(f"out={out}: {name} is an image of the case list; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HnsegError(f"out={out}: {error.strerror}; choose another folder") from error
    for name, columns in ((CASES, COLUMNS[:2]), (LESIONS, LESION_COLUMNS[:2])):
        read_table(out / name, "choose another folder for out", columns)  # a case list, for instance


def summary(outcomes: Sequence[Outcome], out: Path) -> str:
    """A call's last line."""
    counts = Counter[str](outcome.status for outcome in outcomes)
    done = f"{counts['ok'] + counts['skipped']} of {len(outcomes)} cases segmented: {out}"
    skipped = f"{counts['skipped']} skipped, finished before; overwrite=true segments all"
    elsewhere = f"{counts['elsewhere']} at hand in other processes"
    notes = [text for text, status in ((skipped, "skipped"), (elsewhere, "elsewhere")) if counts[status]]
    return f"{done} ({'; '.join(notes)})" if notes else done
