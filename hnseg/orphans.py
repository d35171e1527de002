"""What lies in a cohort's folder and belongs to no case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hnseg.cases import EXTENSIONS, HEADS, LOST, case_files


def find_orphans(root: Path) -> list[str]:
    """Folders, image files and head masks in a HECKTOR folder that belong to no case, relative to it."""
    return sorted(str(path.relative_to(root)) for path in _orphans(root))


def _orphans(root: Path) -> Iterator[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders = [path for path in folders if path.name != LOST]
    cases = {folder.name: set(case_files(folder).values()) for folder in folders if folder.name != HEADS}
    yield from _image_files(root)
    for folder in folders:
        if folder.name == HEADS:
            yield from (path for path in _image_files(folder) if _stem(path) not in cases)
        elif not cases[folder.name]:
            yield folder
        else:
            yield from (path for path in _image_files(folder) if path not in cases[folder.name])


def _image_files(folder: Path) -> list[Path]:
    """None of a folder that may not be looked into."""
    with suppress(OSError):
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        return [path for path in files if path.name.lower().endswith(EXTENSIONS)]
    return []


def _stem(path: Path) -> str:
    return next(path.name[: -len(one)] for one in EXTENSIONS if path.name.lower().endswith(one))
