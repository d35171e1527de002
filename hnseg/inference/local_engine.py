"""A case list in this process: on the CPU, or on every GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hnseg.inference.cascade import Cascade
from hnseg.inference.lanes import Told, run_lanes
from hnseg.inference.provenance import Provenance
from hnseg.inference.work import Made, Work


class LocalEngine:
    """Runs cascades side by side; each takes the next case of the list when it is free.

    Args:
        cascades: One a device. PyTorch lets go of the interpreter while a GPU works.
        at_once: Cases that each of them works on at a time: while one has the networks, others are placed,
            resampled, brought back and measured. Each takes a case's memory. None is 2 on a GPU, which would
            wait for these steps, and 1 on the CPU, whose cores the networks use already.

    Raises:
        HnsegError: The devices would make different masks.
    """

    def __init__(self, cascades: Sequence[Cascade], at_once: int | None = None) -> None:
        on_gpu = cascades[0].networks.device.type == "cuda"
        self.cascades = list(cascades) * (at_once or (2 if on_gpu else 1))
        self.provenance = Provenance.common([Provenance.of(cascade) for cascade in cascades])

    def run(self, works: Sequence[Work], told: Told[Made]) -> None:
        """Takes every case from its files to its mask, as `run_lanes` says.

        Where several are at hand, a case that memory does not suffice for is tried again alone.
        """
        alone = len(self.cascades) == 1
        short: set[str] = set()

        def taken(made: Made) -> None:
            if made.lacked_memory and not alone:
                short.add(made.outcome.case_id)
            else:
                told.done(made)

        run_lanes(works, self.cascades, replace(told, done=taken))
        for work in works:
            if work.case.case_id in short:
                run_lanes([work.anew()], self.cascades[:1], told)
