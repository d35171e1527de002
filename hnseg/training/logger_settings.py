"""The configuration's `logger`: what is logged, and where to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hnseg.errors import HnsegError

KINDS = ("wandb", "tensorboard", "csv")
MODES = ("offline", "online")


@dataclass(frozen=True)
class LoggerSettings:
    """One of conf/logger. All kinds write metrics.csv too.

    W&B writes to disk alone unless `mode` is online: these are patients' scans, and nothing leaves the
    machine unasked.

    Args:
        kind: wandb, tensorboard or csv.
        mode: Of W&B, offline or online.
        project: Of W&B.
        pictures: Whether validation cases are painted; None paints them wherever they stay on the machine.
        pictures_every: Epochs between paintings.

    Raises:
        HnsegError: Unknown kind or mode, pictures neither on nor off, or no whole number of epochs.
    """

    kind: str
    mode: str = "offline"
    project: str = "hnseg"
    pictures: bool | None = None
    pictures_every: int = 25

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HnsegError(f"logger.kind={self.kind} is unknown; choose {', '.join(KINDS[:-1])} or csv")
        if self.mode not in MODES:
            raise HnsegError(f"logger.mode={self.mode} is unknown; choose offline or online")
        # Any text, "no" too, would count as leave to send them.
        if self.pictures is not None and not isinstance(self.pictures, bool):
            raise HnsegError(f"logger.pictures={self.pictures}: choose true, false or null")
        if type(self.pictures_every) is not int or self.pictures_every < 1:
            raise HnsegError(f"logger.pictures_every={self.pictures_every}; give a number of epochs above 0")

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> LoggerSettings:
        """Reads the configuration's `logger`.

        Raises:
            HnsegError: As above, or an unknown key.
        """
        known = [field.name for field in fields(cls)]
        if unknown := next((key for key in entries if key not in known), None):
            raise HnsegError(f"logger.{unknown} is unknown; choose among {', '.join(known)}")
        return cls(**entries)

    @property
    def paints(self) -> bool:
        """Whether validation cases are painted: patients' pictures go online only when asked to."""
        return self.mode == "offline" if self.pictures is None else self.pictures
