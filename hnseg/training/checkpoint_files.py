"""Checkpoints on disk: whole or not there, and the one before where the last is damaged."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from hnseg.errors import HnsegError
from hnseg.files import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, down to the disk, and moves it there.

    Lightning's own is written in the folder for temporary files and moved from there, which between file
    systems is a copy that can be cut off.

    Args:
        last: The checkpoint to resume from.
        previous: What keeps the one before it.
    """

    def __init__(self, last: Path, previous: Path) -> None:
        super().__init__()
        self.last, self.previous = last, previous

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Saves a checkpoint.

        Raises:
            HnsegError: It cannot be written, for instance because the disk is full; what was there stays.
        """
        target = Path(path)
        with replacing(target) as temporary:
            _write(checkpoint, temporary)
            if target == self.last and target.exists():
                # A second name for the old file, so that one whole checkpoint is there at any moment.
                with replacing(self.previous) as kept:
                    os.link(target, kept)


def _write(checkpoint: Mapping[str, Any], temporary: Path) -> None:
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch finds its file too short, and hides why
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def resumable(last: Path, previous: Path) -> Path | None:
    """The checkpoint to go on from, None where nothing has been trained.

    A damaged one is told, passed over for the one before, and removed, lest it become that.

    Raises:
        HnsegError: Only damaged ones are left.
    """
    there = [path for path in (last, previous) if path.exists()]
    if not there:
        return None
    damaged: dict[Path, str] = {}
    for path in there:
        reason = _damage(path)
        if reason is None:
            for other in damaged:
                print(f"{other} is damaged ({damaged[other]}); going on from {path.name}", file=sys.stderr)
                other.unlink()
            return path
        damaged[path] = reason
    told = ", ".join(f"{path} ({reason})" for path, reason in damaged.items())
    raise HnsegError(f"damaged checkpoints: {told}; overwrite=true starts the run anew")


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, which carry check sums; None if nothing is."""
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()
    except (BadZipFile, OSError, EOFError) as error:
        return str(error) or "cut short"
    return None if broken is None else f"{broken} differs from its check sum"
