"""A case list → masks on disk: read, predict, export. A bad case is reported; the others still finish.

A case is done when its record is there (`hnseg.inference.records`). Processes, shards and machines share a
list through the folder alone. Where a file system has no locks, give each process a shard of its own.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from os.path import realpath
from pathlib import Path
from threading import Event
from time import perf_counter, time
from typing import Any

import SimpleITK as sitk
import torch

import hnseg
from hnseg.devices import gpu_peak_mib, lacks_memory, peak_mib, reset_gpu_peak
from hnseg.errors import HnsegError
from hnseg.files import digest, digest_file
from hnseg.imaging.audit import check_case
from hnseg.imaging.case import Case, mask_file
from hnseg.imaging.images import write_image
from hnseg.imaging.suv import read_scan, sidecar
from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.ensemble import LogitsCache
from hnseg.inference.records import CaseFiles, Outcome, Record, Report, reporting
from hnseg.models.bundle import LISTING

_ATTEMPTS = 2  # that a case may take without leaving a record
_DIED = (
    f"its process ended {_ATTEMPTS} times while it was at hand, most likely for want of memory; with more of "
    "it free, overwrite=true tries again"
)
_MORE_MEMORY = (
    "run the same command again with more of it free, with windows=trained and without probabilities and "
    "uncertainty, with fewer engine.workers, or on the CPU (trainer.device=cpu)"
)
_CASE_BYTES = 4 * 2**30  # of a whole-body case that is read ahead and one that is written behind, at most

# The cascades of one device by the folder of their masks; several are the arms of an ensemble.
Cascades = Mapping[Path, Cascade]


@dataclass(frozen=True)
class Options:
    """Of one call."""

    extension: str = ".nii.gz"  # of masks and maps, or .mha
    overwrite: bool = False  # segment finished cases again, and replace masks that were changed by hand
    since: float = field(default_factory=time)  # when the call began, in seconds since the epoch


def predict_cases(
    cases: Sequence[Case], devices: Sequence[Cascades], options: Options | None = None
) -> list[Outcome]:
    """Segments every case that can be segmented, into each folder.

    Writes OUT/CASE.nii.gz, OUT/CASE.json, the maps that were asked for into OUT/maps/CASE, and OUT/cases.csv
    and OUT/lesions.csv. Cases are skipped where neither their files, the bundle nor the settings have
    changed. Those at hand when an earlier process died come last, with no other beside them.

    Args:
        cases: The case list; files may be missing or damaged.
        devices: A mapping for each device, all with the same folders. Of several folders, a case is read once
            for all, and each member sees it once: their cascades may differ in their members alone.
        options: Of this call.

    Returns:
        What became of each case in each folder, in the order in which they ended.
    """
    for out in devices[0]:
        require_same([made_with(cascades[out]) for cascades in devices])
    with reporting(cases, [*devices[0]]) as (report, outcomes):
        run(cases, devices, options or Options(), report)
    return outcomes


def run(cases: Iterable[Case], devices: Sequence[Cascades], options: Options, report: Report) -> None:
    """`predict_cases` without checks, progress and tables, for processes that share a list."""
    settings = {out: made_with(cascade) for out, cascade in devices[0].items()}
    tasks, tried = deque[_Task](), list[_Task]()
    for case in cases:
        folders = [_case_files(out, case, devices[0][out], settings[out], options) for out in settings]
        task = _Task(case, [files for files in folders if not _skip(files, report)], options.extension)
        if any(files.work.exists() for files in task.folders):
            tried.append(task)
        elif task.folders:
            tasks.append(task)
    if tasks or tried:
        _import_networks(devices[0].values())
    depth, stop = _depth(len(devices)), Event()
    if len(devices) == 1:  # in this thread, where Ctrl-C ends it within a case
        _run_device(tasks, devices[0], depth, report, stop)
    else:
        with ThreadPoolExecutor(len(devices), "device") as pool:
            running = [pool.submit(_run_device, tasks, each, depth, report, stop) for each in devices]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # whatever ends one, or this thread, ends all after the cases at hand
        for each in running:
            each.result()
    for task in tried:
        _run_device(deque([task]), devices[0], 0, report, stop=Event())


def _import_networks(cascades: Iterable[Cascade]) -> None:
    """Imports the libraries that networks are built from, whose time is not the first case's."""
    members = [member for cascade in cascades for member in cascade.bundle.members]
    with torch.device("meta"):
        for member in {member.card.network["_target_"]: member for member in members}.values():
            member.network()


def _run_device(tasks: deque[_Task], cascades: Cascades, depth: int, report: Report, stop: Event) -> None:
    """Reads, predicts and exports case by case, with `depth` cases read ahead and as many written behind."""
    reading, writing = deque[_Task](), deque[Future[None]]()
    threads = max(depth, 1)
    with ThreadPoolExecutor(threads, "read") as reader, ThreadPoolExecutor(threads, "write") as writer:
        try:
            while not stop.is_set():
                with suppress(IndexError):  # no case is left; other devices take them too
                    while len(reading) <= depth:
                        task = tasks.popleft()
                        task.folders = [files for files in task.folders if _start(files, report)]
                        if task.folders:
                            task.scan = reader.submit(_read, task.case)
                            reading.append(task)
                if not reading:
                    break
                task = reading.popleft()
                writing.append(writer.submit(task.export, task.predict(cascades), report))
                while len(writing) > depth:
                    writing.popleft().result()
            for each in writing:
                each.result()
        finally:
            for task in reading:
                task.release()


def _depth(devices: int) -> int:
    """How many cases a device reads ahead and writes behind: what cores and memory allow, 1 to 4."""
    depth = min(4, (os.cpu_count() or 1) // (4 * devices))
    if "SC_AVPHYS_PAGES" in os.sysconf_names:  # macOS does not tell
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        depth = min(depth, free // (_CASE_BYTES * devices))
    return max(depth, 1)


def _skip(files: CaseFiles, report: Report) -> bool:
    if not files.is_finished():
        return False
    if files.work.exists() and files.claim():  # of a process that died when the case was done
        files.release()
    report(Outcome(files.out, files.case_id, "skipped"))
    return True


def _start(files: CaseFiles, report: Report) -> bool:
    """Whether this process may segment a case into a folder; if not, `report` hears why."""
    if not files.claim():
        report(Outcome(files.out, files.case_id, "elsewhere"))
        return False
    attempts = files.attempts()
    if files.is_finished():  # by another process meanwhile
        report(Outcome(files.out, files.case_id, "skipped"))
    elif attempts >= _ATTEMPTS:
        files.place(replace(files.blank, message=_DIED))
        report(Outcome(files.out, files.case_id, "error", _DIED))
        files.release(attempts)
    else:
        try:
            files.require_replaceable()
            files.begin()
            return True
        except HnsegError as error:
            report(Outcome(files.out, files.case_id, "error", str(error)))
    files.release()
    return False


_Scan = tuple[sitk.Image, sitk.Image, str, float]


def read_checked(case: Case) -> tuple[sitk.Image, sitk.Image, str]:
    """CT (HU), PET (SUV), and what to know of them; raises HnsegError for an error of `check_case`."""
    ct, pet = read_scan(case)
    issues = check_case(ct, pet)
    if faults := [issue.text for issue in issues if issue.level == "error"]:
        raise HnsegError(faults[0])
    return ct, pet, "; ".join(issue.text for issue in issues)


def _read(case: Case) -> _Scan:
    start = perf_counter()
    return *read_checked(case), perf_counter() - start


_Prediction = tuple[CaseFiles, Record, Segmentation | None]


@dataclass
class _Task:
    """One case on its way into the folders that lack it."""

    case: Case
    folders: list[CaseFiles]
    extension: str
    scan: Future[_Scan] | None = None

    def release(self) -> None:
        """Leaves the case to a later call; the present attempt has not ended the process."""
        for files in self.folders:
            files.release(attempts=files.attempts() - 1)

    def predict(self, cascades: Cascades) -> list[_Prediction]:
        """Runs the networks, folder by folder; the images are let go of."""
        assert self.scan is not None
        scan, self.scan = self.scan, None
        cache: LogitsCache | None = {} if len(self.folders) > 1 else None
        try:
            return [(files, *_predict(files, cascades[files.out], scan, cache)) for files in self.folders]
        except BaseException:  # Ctrl-C: of all others `_predict` makes records
            self.release()
            raise

    def export(self, predictions: list[_Prediction], report: Report) -> None:
        """Writes masks, maps and records."""
        try:
            while predictions:
                files, record, result = predictions.pop(0)
                report(_export(files, record, result, self.extension))
        except BaseException:
            self.release()
            raise


def _predict(
    files: CaseFiles, cascade: Cascade, scan: Future[_Scan], cache: LogitsCache | None
) -> tuple[Record, Segmentation | None]:
    device, seconds = cascade.networks.device, dict[str, float]()
    reset_gpu_peak(device)
    try:
        ct, pet, notes, seconds["read"] = scan.result()
        result = cascade(ct, pet, files.case_id, cache)
    except Exception as error:
        return replace(files.blank, message=_explain(error), seconds=seconds, memory_mib=peak_mib()), None
    record = replace(
        files.blank,
        status="ok",
        rules=result.decision,
        out_of_fold=result.out_of_fold,
        roi=[grid.to_dict() for grid in [*result.grids.values()][-1]],
        fallbacks=result.fallbacks,
        lesions=result.lesions,
        lesion_ml_outside_roi=result.lesion_ml_outside_roi,
        review_reasons=result.review_reasons,
        message="; ".join(filter(None, [*result.notes, notes])),
        seconds=seconds | result.seconds,
        memory_mib=peak_mib(),
        gpu_mib=gpu_peak_mib(device),
    )
    return record, result


def _export(files: CaseFiles, record: Record, result: Segmentation | None, extension: str) -> Outcome:
    """Writes mask, maps and record; without the first two where they cannot be written."""
    try:
        if result is None:
            files.place(record)
        else:
            start = perf_counter()
            mask, maps = files.work / f"{files.case_id}{extension}", list[Path]()
            write_image(result.mask, mask)
            for name, image in result.volumes():
                maps.append(files.work / f"{name}{extension}")
                write_image(image, maps[-1])
            record = replace(record, seconds=record.seconds | {"write": perf_counter() - start})
            files.place(record, mask, maps)
    except (HnsegError, OSError) as error:
        record = replace(files.blank, message=str(error), seconds=record.seconds)
        files.place(record)
    files.release()
    lost = record.lesion_ml_outside_roi
    outside = f"{lost:.2f} ml of coarse lesion outside the cube" if lost else ""
    return Outcome(
        files.out, files.case_id, record.status, "; ".join(filter(None, (outside, record.message)))
    )


def _explain(error: Exception) -> str:
    """An error in one line; the traceback of one that is a defect goes to stderr."""
    if isinstance(error, HnsegError):
        return str(error)
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if lacks_memory(error):
        return f"not enough memory ({line[:200]}); {_MORE_MEMORY}"
    print("".join(traceback.format_exception(error)), file=sys.stderr)
    return f"{line} (a defect, please report it)"


def made_with(cascade: Cascade) -> dict[str, Any]:
    """What all masks of a cascade depend on, in values that JSON can hold."""
    return {
        "version": hnseg.__version__,
        "bundle": digest_file(cascade.bundle.path / LISTING),
        "identity": cascade.bundle.identity,
        "members": [[member.card.name, [*member.card.patch]] for member in cascade.bundle.members],
        "rules": asdict(cascade.decision),
        "stage": cascade.names[-1],
        "out_of_fold": cascade.out_of_fold,
        "oracle": cascade.lesions is not None,
        "precision": cascade.networks.precision,
        "device": cascade.networks.device.type,
        "networks": type(cascade.networks).__name__,
        "maps": [cascade.probabilities, cascade.uncertainty],
    }


def require_same(settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuses devices that differ in `made_with`: it would matter which of them makes a mask."""
    for other in settings[1:]:
        for key, value in settings[0].items():
            if other[key] != value:
                raise HnsegError(
                    f"the machines or GPUs differ in {key} ({value}, {other[key]}) and would make different "
                    "masks; set trainer.precision, trainer.device and backend, and have one hnseg on all"
                )


def _case_files(
    out: Path, case: Case, cascade: Cascade, settings: Mapping[str, Any], options: Options
) -> CaseFiles:
    """A case's files in a folder, with the digest of what its mask depends on.

    Images count by path, size and time of change.
    """
    paths = [case.ct, case.pet]
    with suppress(HnsegError):  # a misnamed PET has no sidecar, and is refused when it is read
        paths.append(sidecar(case.pet))
    if cascade.head_masks is not None:
        paths.append(mask_file(cascade.head_masks, case.case_id))
    if cascade.lesions is not None and case.label is not None:
        paths.append(case.label)
    content = [settings, [_state(path) for path in paths], case.pet_factor, options.extension]
    blank = Record(case.case_id, "error", digest(content, 64), settings["identity"], settings["stage"])
    return CaseFiles(out, blank, options.since if options.overwrite else None)


def _state(path: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except OSError:  # missing, or beyond reach, which reading it will tell
        return None
    return realpath(path), status.st_size, status.st_mtime_ns
