"""The exception for mistakes in the input."""

from collections.abc import Sequence


class HnsegError(Exception):
    """A mistake in the input, in one line.

    The message names the file or key, the value that clashed and the remedy. Entry points print
    it without a traceback and exit with status 2; any other exception is a defect of hnseg.
    """


def few(names: Sequence[str]) -> str:
    """The first five names and the number of the others, for one line."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
