"""`hnseg`: every command. train.py and infer.py are its train and infer, for a clone.

Each command imports what it needs when it runs, so that `hnseg --help` answers at once.
"""

# ruff: noqa: I001 (commands stand in --help in the order they are imported)
import sys

from hnseg.cli import cohorts, train, plan, reproduce, training, infer, scores, bundles  # noqa: F401
from hnseg.cli.app import app
from hnseg.errors import HnsegError


def main() -> None:
    """Run the command line; a mistake in the input ends it with one line and status 2."""
    try:
        app()
    except HnsegError as error:
        line = " ".join(str(error).splitlines())
        print(f"hnseg: error: {line}", file=sys.stderr)
        sys.exit(2)
