"""One case on its way from its files to its mask, step by step; each step may run in a thread of its own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import SimpleITK as sitk

from hnseg.cases import Case
from hnseg.checks import check_case
from hnseg.errors import HnsegError
from hnseg.hardware import gpu_peak_mib, peak_mib, reset_gpu_peak
from hnseg.inference.cascade import Cascade
from hnseg.inference.outcome import Outcome
from hnseg.inference.record import Record
from hnseg.inference.segmentation import Segmentation
from hnseg.suv import read_scan


class Work:
    """Reads, segments and writes one case; an error ends its way and is told at the end of it.

    Args:
        case: The case; its files may be missing or damaged.
        made_from: Digest of its files, the bundle and the settings.
    """

    def __init__(self, case: Case, made_from: str) -> None:
        self.case, self.made_from = case, made_from
        self._images: tuple[sitk.Image, sitk.Image] | None = None
        self._warnings = ""
        self._result: Segmentation | None = None
        self._error: Exception | None = None
        self._seconds: dict[str, float] = {}
        self._gpu_mib: float | None = None

    def read(self) -> None:
        """Reads and checks CT and PET."""
        with self._step("read"):
            ct, pet = read_scan(self.case)
            findings = check_case(ct, pet)
            faults = [finding.text for finding in findings if finding.level == "error"]
            if faults:
                raise HnsegError(faults[0])
            self._warnings = "; ".join(finding.text for finding in findings)
            self._images = ct, pet

    def segment(self, cascade: Cascade) -> None:
        """Runs the networks, and lets go of the images."""
        if self._images is None:
            return
        images, self._images = self._images, None
        reset_gpu_peak(cascade.networks.device)
        with self._step():
            self._result = cascade(*images, self.case.case_id)
            self._seconds |= self._result.seconds
        self._gpu_mib = gpu_peak_mib(cascade.networks.device)

    def write(self, record: Record) -> Outcome:
        """Writes what was made and the case's line; without a mask, an earlier one is removed.

        Raises:
            HnsegError: The folder's tables cannot be written.
        """
        record.withdraw(self.case.case_id)
        result, self._result = self._result, None
        written = ""
        if result is not None:
            with self._step("write"):
                written = record.write(self.case.case_id, result)
        if self._error is not None or result is None:
            record.remove(self.case.case_id)
            outcome = Outcome(self.case.case_id, "error", self._seconds, peak_mib(), message=self._message)
            self._error = None  # its traceback holds the images
        else:
            outcome = Outcome(
                self.case.case_id,
                "ok",
                self._seconds,
                peak_mib(),
                self._gpu_mib,
                unseen=result.unseen,
                outside_ml=result.outside_ml,
                roi=result.roi,
                fallbacks="; ".join(result.fallbacks),
                look_first=result.look_first,
                message=self._warnings,
                rules=result.rules,
                made_from=self.made_from,
                written=written,
            )
        record.put(outcome)
        return outcome

    @property
    def _message(self) -> str:
        """The error in one line; a defect's traceback goes to the terminal."""
        error = self._error
        if error is None or isinstance(error, HnsegError):
            return str(error)
        traceback.print_exception(error)  # or no memory left; the next case may do well
        return f"{type(error).__name__}: {' '.join(str(error).split())} (a defect, please report it)"

    @contextmanager
    def _step(self, name: str = "") -> Iterator[None]:
        """Times a step, and keeps its error for the end of the way."""
        start = perf_counter()
        try:
            yield
        except Exception as error:
            self._error = error
        finally:
            if name:
                self._seconds[name] = perf_counter() - start
