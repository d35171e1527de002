"""Files that are whole or absent, CSV tables as they are read again, and the console for tables."""

from __future__ import annotations

import csv
import errno
import fcntl
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from hnseg.errors import HnsegError

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.\w+)*")


def temporary_beside(path: Path, extension: str) -> Path:
    """A name that nothing has yet, in the folder of `path`, which `remove_leftovers` knows again."""
    return path.with_name(f".{uuid.uuid4().hex}{extension}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which takes its place once the block has ended well.

    Raises:
        HnsegError: The folder cannot be written.
    """
    temporary = temporary_beside(path, path.suffix)
    with _written_or_removed(temporary, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)


def require_writable(path: Path) -> None:
    """Refuse, before long work, a file that could not be written after it; nothing is left there.

    Raises:
        HnsegError: It cannot be written.
    """
    there = next(parent for parent in path.absolute().parents if parent.exists())
    temporary = temporary_beside(there / path.name, path.suffix)
    with _written_or_removed(temporary, path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.touch()


def place(temporary: Path, path: Path) -> None:
    """Move a whole temporary file to its place, or remove it.

    Raises:
        HnsegError: The folder cannot be written.
    """
    with _written_or_removed(temporary, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)


@contextmanager
def _written_or_removed(temporary: Path, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise HnsegError(f"{path}: cannot be written ({reason}); check the folder and its space") from error
    finally:
        with suppress(OSError):  # it would hide the first error
            temporary.unlink(missing_ok=True)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into `folder`, and remove what a killed one leaves half-written.

    The lock ends with the process, however it ends, and leaves no file. Where the file system has no locks
    (some network shares) there is none, and leftovers stay: they might be another process's.

    Raises:
        HnsegError: Another process writes there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = _lock(descriptor, folder)
        try:
            if locked:
                remove_leftovers(folder)
            yield
        finally:
            if locked:
                remove_leftovers(folder)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what has a name of `temporary_beside`; only who is alone there may, others write such files."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which takes its place once the block has ended well.

    What a killed process left there is removed, or put back, first.

    Raises:
        HnsegError: Another process is about to replace it.
        OSError: It cannot be written; what was there stays.
    """
    path = path.resolve()  # of a link, what it leads to
    new, old = _beside(path)
    new.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(new, os.O_RDONLY)
    try:
        _lock(descriptor, path)
        try:
            _put_back(path, old)
            for leftover in (old, *new.iterdir()):
                _remove(leftover)
            yield new
            if path.exists():
                path.replace(old)
            new.replace(path)
        finally:
            _put_back(path, old)
            for folder in (new, old):
                _remove(folder)
    finally:
        os.close(descriptor)


def restore(path: Path) -> None:
    """Put back the folder that a process killed amid `replacing_folder` has moved aside."""
    path = path.resolve()
    new, old = _beside(path)
    if old.exists() and not (new.exists() and is_held(new)):
        _put_back(path, old)


def _put_back(path: Path, old: Path) -> None:
    if old.exists() and not path.exists():
        old.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _beside(path: Path) -> tuple[Path, Path]:
    """Names of the folder that is to come, and of the one that was."""
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Wait until no other process is in this block with `folder`.

    Yields:
        Whether that is so: where the file system has no locks, the block begins at once.
    """
    descriptor, alone = os.open(folder, os.O_RDONLY), False
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a `sole_writer` is at work in `folder`; not known where the file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _taken(descriptor, fcntl.LOCK_SH)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        while not _taken(descriptor, fcntl.LOCK_EX):
            # `is_held` has a shared lock for a moment; next to a writer there is none to be had.
            if not _taken(descriptor, fcntl.LOCK_SH):
                raise HnsegError(f"{folder}: another process writes there; wait, or choose another folder")
    except OSError:
        return False
    return True


def _taken(descriptor: int, lock: int) -> bool:
    """Whether a lock was to be had at once."""
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def require_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Refuse what cannot fit the disk.

    Args:
        folder: Where it is to lie; it need not be there yet.
        needed: Bytes.
        what: That takes them, in the plural.
        remedy: What to do.

    Raises:
        HnsegError: Less is free.
    """
    # `Path.exists` fails where a folder above may not be entered.
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.access(path, os.F_OK))
    free = shutil.disk_usage(there).free
    if needed > free:
        raise HnsegError(f"{folder}: {what} take {size(needed)}, and {size(free)} are free there; {remedy}")


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def read_table(
    path: Path, remedy: str, needed: Sequence[str] = ()
) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; none where there is no such file.

    Args:
        path: The file.
        remedy: What to do about one that cannot be read.
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


def table_console() -> Console:
    """The terminal at its own width; in a file or pipe, wide enough to cut nothing off."""
    return Console(width=None if sys.stdout.isatty() else 160)
