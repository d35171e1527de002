"""What became of one case: a line of cases.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

STEPS = ("read", "resample", "wait", "head", "coarse", "fine", "back", "write")
COLUMNS = [
    *("case_id", "status", "seconds"),
    *(f"{step}_s" for step in STEPS),
    *("memory_mib", "gpu_mib", "unseen", "outside_ml", "roi", "fallbacks", "look_first"),
    *("message", "rules", "made_from", "written"),
]


@dataclass(frozen=True)
class Outcome:
    """One line of cases.csv.

    Args:
        case_id: The case.
        status: ok or error; skipped where an earlier call's mask still holds, whose line stays. (A line may
            say begun or unfinished too, where a call has ended amid a case.)
        seconds: Each step's, from reading to writing; steps of different cases overlap, and where they share
            networks one may wait for the other.
        memory_mib: The most memory the process has had so far, MiB.
        gpu_mib: The most memory taken of the GPU while the case was there, by others at hand with it too,
            MiB; None without a GPU.
        unseen: Whether no network that made the mask was trained on the case; None without a mask.
        outside_ml: Coarse lesion that the fine stage did not look at, ml; None where it has no cube.
        roi: The grid on which the last stage looked, as JSON; empty where it looked on several.
        fallbacks: What was done where a stage found nothing, and what of the ROI the scan does not show.
        look_first: Why a reader should look at the case before others; empty where nothing speaks for it.
        message: Why there is no mask, or what to know of the images.
        rules: Those by which the mask was decided, as JSON; empty without a mask.
        made_from: The bundle's identity, and a digest of the case's files, the bundle and the settings;
            empty without a mask.
        written: Digests of what was written for the case, by file, as JSON; empty where nothing was.
    """

    case_id: str
    status: Literal["ok", "error", "skipped"]
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory_mib: float | None = None
    gpu_mib: float | None = None
    unseen: bool | None = None
    outside_ml: float | None = None
    roi: str = ""
    fallbacks: str = ""
    look_first: str = ""
    message: str = ""
    rules: str = ""
    made_from: str = ""
    written: str = ""

    def failed(self, message: str) -> Outcome:
        """The line where what was made could not be put in its place."""
        return Outcome(self.case_id, "error", self.seconds, self.memory_mib, message=message)

    @property
    def row(self) -> dict[str, str]:
        """The line, by column."""
        return {
            "case_id": self.case_id,
            "status": self.status,
            "seconds": f"{sum(self.seconds.values()):.2f}",
            **{f"{step}_s": _number(self.seconds.get(step)) for step in STEPS},
            "memory_mib": _number(self.memory_mib, 0),
            "gpu_mib": _number(self.gpu_mib, 0),
            "unseen": "" if self.unseen is None else "yes" if self.unseen else "no",
            "outside_ml": _number(self.outside_ml),
            "roi": self.roi,
            "fallbacks": self.fallbacks,
            "look_first": self.look_first,
            "message": self.message,
            "rules": self.rules,
            "made_from": self.made_from,
            "written": self.written,
        }

    @property
    def remarks(self) -> str:
        """What a reader of the terminal should know."""
        lost = f"{self.outside_ml:.2f} ml of coarse lesion outside the cube" if self.outside_ml else ""
        return "; ".join(filter(None, (self.fallbacks, lost, self.message)))


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
