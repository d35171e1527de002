"""Result files that are whole or not there."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hnseg.errors import HnsegError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which takes its place once the block has ended well.

    Raises:
        HnsegError: The folder cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise HnsegError(f"{path}: cannot be written ({reason}); check the folder and its space") from error
    finally:
        with suppress(OSError):  # it would hide the first error
            temporary.unlink(missing_ok=True)
