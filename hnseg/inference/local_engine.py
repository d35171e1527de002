"""A case list in this process: one cascade, or one a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hnseg.inference.cascade import Cascade
from hnseg.inference.lanes import run_lanes
from hnseg.inference.provenance import Provenance
from hnseg.inference.work import Made, Work


class LocalEngine:
    """Runs cascades side by side; each takes the next case of the list when it is free.

    Args:
        cascades: One a device. PyTorch lets go of the interpreter while a GPU works.

    Raises:
        HnsegError: The devices would make different masks.
    """

    def __init__(self, cascades: Sequence[Cascade]) -> None:
        self.cascades = cascades
        self.provenance = Provenance.common([Provenance.of(cascade) for cascade in cascades])

    def run(self, works: Sequence[Work], begin: Callable[[str], None], done: Callable[[Made], None]) -> None:
        """Takes every case from its files to its mask, as `run_lanes` says."""
        run_lanes(works, self.cascades, begin, done)
