"""Masks and maps in a folder, told by the names that infer.py gives; nothing else there is ever touched."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from hnseg.files import digest_file
from hnseg.imaging.case import EXTENSIONS
from hnseg.inference import ensemble
from hnseg.inference.work import MAPS

FORMATS = (".nii.gz", ".mha")  # of masks and maps


class Outputs:
    """Files of cases in a folder.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = out

    def digests(self, case_id: str) -> dict[str, str]:
        """SHA-256 of a case's masks and maps by their names in the folder; empty of what cannot be read.

        CASE.nii, which is never written here, would pass for the case's mask elsewhere: it counts too.
        """
        found = {}
        for path in [*self._masks(case_id, EXTENSIONS), *self._maps(case_id)]:
            name = self.name(path)
            found[name] = ""
            with suppress(OSError):
                found[name] = digest_file(path)
        return found

    def name(self, path: Path) -> str:
        """A file's name in the folder."""
        return path.relative_to(self._out).as_posix()

    def remove_masks(
        self, case_id: str, extensions: Collection[str] = FORMATS, *, but: Collection[str] = ()
    ) -> None:
        """Removes a case's masks of some formats, but for those of some names.

        Raises:
            OSError: One cannot be removed.
        """
        self._unlink(self._masks(case_id, extensions), but)

    def remove_maps(self, case_id: str, *, but: Collection[str] = ()) -> None:
        """Removes a case's maps, but for those of some names, and their folder if it is empty then.

        Raises:
            OSError: One cannot be removed.
        """
        maps = self._maps(case_id)
        self._unlink(maps, but)
        if maps:
            with suppress(OSError):  # somebody's files lie there too
                maps[0].parent.rmdir()

    def _unlink(self, paths: Collection[Path], but: Collection[str]) -> None:
        for path in paths:
            if self.name(path) not in but:
                path.unlink(missing_ok=True)

    def _masks(self, case_id: str, extensions: Collection[str]) -> list[Path]:
        paths = [self._out / f"{case_id}{extension}" for extension in extensions]
        return [path for path in paths if path.is_file()]  # a folder there ends that case alone

    def _maps(self, case_id: str) -> list[Path]:
        folder = self._out / MAPS / case_id
        names = ("probability_*", *ensemble.MAPS)
        return sorted(path for name in names for end in FORMATS for path in folder.glob(f"{name}{end}"))
