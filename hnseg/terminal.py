"""What tables are printed on."""

import sys

from rich.console import Console


def table_console() -> Console:
    """The terminal at its own width; in a file or pipe, wide enough to cut nothing off."""
    return Console(width=None if sys.stdout.isatty() else 160)
