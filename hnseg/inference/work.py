"""One case on its way from its files to its mask, step by step; each step may run in a thread of its own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import SimpleITK as sitk

from hnseg.devices import gpu_peak_mib, lacks_memory, peak_mib, reset_gpu_peak
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case
from hnseg.imaging.checks import check_case
from hnseg.imaging.images import stage_image
from hnseg.imaging.suv import read_scan
from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.lesions import Lesion
from hnseg.inference.outcome import Outcome

_MORE_ROOM = (
    "run the same command again with more of it free, with windows=trained and without probabilities and "
    "uncertainty, with fewer engine.workers, or on the CPU (trainer.device=cpu)"
)
MAPS = "maps"  # OUT/maps/CASE/MAP.nii.gz


@dataclass(frozen=True)
class Made:
    """What became of a case, for the one who keeps the folder's record to put in its place.

    Args:
        outcome: The case's line, but for the digest of what was written.
        files: Where mask and maps lie in OUT and by which path there they are to be known, in this order.
        lesions: Of the mask.
        defect: The traceback of an error that no user has made; else empty.
        lacked_memory: That was the error.
    """

    outcome: Outcome
    files: Mapping[Path, Path] = field(default_factory=dict)
    lesions: Sequence[Lesion] = ()
    defect: str = ""
    lacked_memory: bool = False


class Work:
    """Reads, segments and saves one case; an error ends its way and is told at the end of it.

    Before it is read it is a few paths, which any process can be given.

    Args:
        case: The case; its files may be missing or damaged.
        made_from: Digest of its files, the bundle and the settings.
        out: The folder of the masks.
        extension: Of masks and maps.
    """

    def __init__(self, case: Case, made_from: str, out: Path, extension: str) -> None:
        self.case, self.made_from = case, made_from
        self._out, self._extension = out, extension
        self._images: tuple[sitk.Image, sitk.Image] | None = None
        self._warnings = ""
        self._result: Segmentation | None = None
        # What ended its way: the line, a defect's traceback, and whether memory was short. Not the error
        # itself, which holds images, and a network's activations.
        self._failure: tuple[str, str, bool] | None = None
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

    def anew(self) -> Work:
        """The same case before it is read."""
        return Work(self.case, self.made_from, self._out, self._extension)

    def take_scan(self, other: Work) -> None:
        """Takes the very images that another work on the same case has read, or what kept it from them."""
        self._images, self._warnings, self._failure = other._images, other._warnings, other._failure
        self._seconds = dict(other._seconds)

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

    def save(self) -> Made:
        """Writes mask and maps under temporary names, and lets go of them."""
        result, self._result = self._result, None
        files: dict[Path, Path] = {}
        if result is not None:
            with self._step("write"):
                files = self._stage(result)
        if self._failure is not None or result is None:
            message, defect, lacked_memory = self._failure or ("", "", False)
            outcome = Outcome(self.case.case_id, "error", self._seconds, peak_mib(), message=message)
            return Made(outcome, defect=defect, lacked_memory=lacked_memory)
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
        )
        return Made(outcome, files, result.lesions)

    def _stage(self, result: Segmentation) -> dict[Path, Path]:
        """Temporary files of mask and maps, all or none; in OUT itself, where leftovers are looked for."""
        files: dict[Path, Path] = {}
        maps = self._out / MAPS / self.case.case_id
        try:
            path = self._out / f"{self.case.case_id}{self._extension}"
            files[stage_image(result.mask, path, self._out)] = path
            for name, image in result.volumes():
                path = maps / f"{name}{self._extension}"
                files[stage_image(image, path, self._out)] = path
        except BaseException:
            for temporary in files:
                with suppress(OSError):  # it would hide the first error
                    temporary.unlink(missing_ok=True)
            raise
        return files

    @contextmanager
    def _step(self, name: str = "") -> Iterator[None]:
        """Times a step, and keeps what its error says for the end of the way."""
        start = perf_counter()
        try:
            yield
        except Exception as error:
            self._failure = _told(error)
        finally:
            if name:
                self._seconds[name] = perf_counter() - start


def _told(error: Exception) -> tuple[str, str, bool]:
    """An error in one line, the traceback of one that is a defect, and whether memory was short."""
    if isinstance(error, HnsegError):
        return str(error), "", False
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if lacks_memory(error):
        return f"not enough memory ({line[:200]}); {_MORE_ROOM}", "", True
    line = f"{line} (a defect, please report it)"
    return line, "".join(traceback.format_exception(error)), False
