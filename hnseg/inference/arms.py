"""Several ensemble arms on one case list, in one pass: each network sees a case once, whatever arms it is in.

Each arm has a folder of its own, just as a call of infer.py would have left it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from hnseg.imaging.case import Case
from hnseg.inference.cascade import Cascade
from hnseg.inference.case_list import display, keeping
from hnseg.inference.ensemble import Memory
from hnseg.inference.lanes import Told, run_lanes
from hnseg.inference.outcome import Outcome
from hnseg.inference.provenance import Provenance
from hnseg.inference.work import Made, Work


@dataclass(frozen=True)
class Arms:
    """The cascades of all arms on one device.

    Args:
        cascades: By arm; they share `memory`, and differ in their fine members.
        memory: What their networks say of the case at hand.
    """

    cascades: Mapping[str, Cascade]
    memory: Memory


class ArmsJob:
    """One case on its way through the arms that have not finished it.

    Args:
        works: By arm, at least one, all of this case.
    """

    def __init__(self, works: Mapping[str, Work]) -> None:
        self._works = works
        self.case = next(iter(works.values())).case

    def read(self) -> None:
        """Reads and checks CT and PET, once for all arms."""
        first, *others = self._works.values()
        first.read()
        for other in others:
            other.take_scan(first)

    def segment(self, arms: Arms, /) -> None:
        """Runs the networks, one arm after the other."""
        for name, work in self._works.items():
            work.segment(arms.cascades[name])
        arms.memory.forget()

    def save(self) -> dict[str, Made]:
        """Writes each arm's mask and maps under temporary names."""
        return {name: work.save() for name, work in self._works.items()}


def segment_arms(cases: Sequence[Case], devices: Sequence[Arms], out: Path) -> dict[str, list[Outcome]]:
    """Segments every case that can be segmented with every arm.

    Writes into OUT/ARM what `segment_cases` writes into OUT, and skips what it would skip there. The seconds
    in an arm's cases.csv are those that it added to the arms before it.

    Args:
        cases: In the order in which they are segmented: networks stay loaded between cases that share them.
        devices: The same arms on each device.
        out: Folder of the arms' folders.

    Returns:
        What became of each case, by arm.

    Raises:
        HnsegError: As `segment_cases`, for any arm's folder.
    """
    names = list(devices[0].cascades)
    outcomes = {name: {case.case_id: Outcome(case.case_id, "skipped") for case in cases} for name in names}
    with ExitStack() as stack:
        records, todo = {}, dict[str, dict[str, Work]]()
        for name in names:
            made_with = Provenance.common([Provenance.of(arms.cascades[name]) for arms in devices])
            records[name], works = stack.enter_context(keeping(out / name, cases, made_with))
            for work in works:
                todo.setdefault(work.case.case_id, {})[name] = work
        jobs = [ArmsJob(todo[case.case_id]) for case in cases if case.case_id in todo]
        begin, end = stack.enter_context(display(len(cases), len(cases) - len(jobs)))
        one_at_a_time = Lock()

        def done(made: Mapping[str, Made]) -> None:
            with one_at_a_time:
                taken = {name: records[name].take(one) for name, one in made.items()}
            for name, outcome in taken.items():
                outcomes[name][outcome.case_id] = outcome
            for defect in dict.fromkeys(one.defect for one in made.values() if one.defect):
                print(defect, file=sys.stderr)
            end(_together(taken))

        run_lanes(jobs, devices, Told(lambda case_id: None, begin, done))
    return {name: list(outcomes[name].values()) for name in names}


def _together(taken: Mapping[str, Outcome]) -> Outcome:
    """One line for the terminal: an arm that failed, else the first, with what any of them remarks."""
    shown = next((one for one in taken.values() if one.status == "error"), next(iter(taken.values())))
    remarks = dict.fromkeys(one.remarks for one in taken.values() if one.remarks)
    return replace(shown, fallbacks="", outside_ml=None, message="; ".join(remarks))
