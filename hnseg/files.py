"""Files and folders that are whole or absent, locks, digests, CSV tables, and what is printed beside them."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hnseg.errors import HnsegError

LOCK = ".lock"
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.\w+)*")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place if the block ends well.

    The bytes are on the disk before the file has its name: a power cut leaves the old file or the new.

    Raises:
        HnsegError: The folder cannot be written.
    """
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix  # it says the format
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):  # it would hide the first error
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Refuse, before long work, a file that could not be written after it.

    Raises:
        HnsegError: It cannot be written.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    temporary = folder / f".{uuid.uuid4().hex}"
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> HnsegError:
    reason = error.strerror or type(error).__name__
    return HnsegError(f"{path}: cannot be written ({reason}); check the folder and its space")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which takes its place if the block ends well.

    What a killed process left beside it is removed, or put back, first.

    Raises:
        HnsegError: Another process is replacing it.
        OSError: It cannot be written; the old folder stays.
    """
    path = path.resolve()  # of a link, its target
    new, old = path.with_name(f".{path.name}.new"), _moved_aside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked_folder(path):
        _put_back(path)
        try:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
            new.mkdir()
            yield new
            if path.exists():
                path.replace(old)
            new.replace(path)
        finally:
            _put_back(path)
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)


def restore(path: Path) -> None:
    """Put back the folder that a process killed amid `replacing_folder` has moved aside."""
    path = path.resolve()
    if _moved_aside(path).exists():
        with suppress(HnsegError, OSError), _locked_folder(path):
            _put_back(path)


def _put_back(path: Path) -> None:
    old = _moved_aside(path)
    if old.exists() and not path.exists():
        old.replace(path)


def _moved_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _locked_folder(path: Path) -> AbstractContextManager[None]:
    return _locked(path.with_name(f".{path.name}{LOCK}"), path, wait_s=0)


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from this block while it runs; the lock ends with the process, however it ends.

    Args:
        folder: Holds the lock file while the block runs.
        wait: For the other process; else it is refused.

    Raises:
        HnsegError: Another process holds the lock.
    """
    with _locked(folder / LOCK, folder, wait_s=-1 if wait else 1):
        yield


@contextmanager
def _locked(file: Path, path: Path, wait_s: float) -> Iterator[None]:
    try:
        with FileLock(file, timeout=wait_s):
            try:
                yield
            finally:
                file.unlink(missing_ok=True)  # a process that waits for it makes another
    except Timeout as error:
        raise HnsegError(f"{path}: another process writes there; wait, or choose another folder") from error


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder; False in a folder that cannot be written."""
    file = folder / LOCK
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `replacing` that a killed process left, where no other process writes."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def digest(content: Any, length: int = 12) -> str:
    """SHA-256 of lists, dicts, numbers and text, whatever the order of keys; the first hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def digest_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_table(
    path: Path, remedy: str, needed: Sequence[str] = ()
) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; none if it does not exist.

    Args:
        path: The file.
        remedy: What to do if it cannot be read.
        needed: Columns that it must have.

    Raises:
        HnsegError: It cannot be read, lacks a column, or has a row of another width than its header.
    """
    if not path.exists():
        return (), []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), []
            if missing := [name for name in needed if name not in columns]:
                found = ",".join(columns)
                raise HnsegError(f"{path}: has no columns {' and '.join(missing)}, only {found!r}; {remedy}")
            for row in reader:
                if None in row or None in row.values():
                    where = f"{path} line {reader.line_num}"
                    raise HnsegError(f"{where}: not as many cells as the {len(columns)} columns; {remedy}")
                rows.append(row)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise HnsegError(f"{path}: cannot be read ({error}); {remedy}") from error
    return columns, rows


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file whole; what a row lacks is empty, what has no column is left out.

    Raises:
        HnsegError: The folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all.

    Raises:
        HnsegError: The folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(content: Any, path: Path) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        HnsegError: The folder cannot be written.
    """
    write_text(json.dumps(content, indent=1) + "\n", path)


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", console: Console | None = None
) -> None:
    """Print a table: names in the first column whole, columns of numbers aligned to the right."""
    table = Table(title=escape(title) or None)
    for index, heading in enumerate(headings):
        numbers = all(re.fullmatch(r"[-−+]?[\d.]*|–", row[index]) for row in rows)
        table.add_column(
            escape(heading), justify="right" if numbers else "left", overflow="fold", no_wrap=not index
        )
    for row in rows:
        table.add_row(*map(escape, row))
    (console or table_console()).print(table)


def table_console() -> Console:
    """The terminal at its own width; in a file or pipe, wide enough to cut nothing off."""
    return Console(width=None if sys.stdout.isatty() else 160)
