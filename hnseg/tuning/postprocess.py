"""`hnseg tune-postprocess`: volume floors per class and a SUVpeak bound for nodes, chosen out of fold."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from hnseg.errors import HnsegError
from hnseg.inference.decision import Decision
from hnseg.metrics import Overlap, Overlaps, Scores, aggregate, match
from hnseg.models.bundle import Bundle
from hnseg.tuning.choice import Trials, choose
from hnseg.tuning.components import Bar, CaseComponents, Components, read_components
from hnseg.tuning.predictions import CLASSES, pair_up, require_same_bundle

FLOORS_ML = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
GATES_SUV = (0.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
TUMOUR_BARS = [Bar(ml) for ml in FLOORS_ML]
NODE_BARS = [Bar(ml, suv) for ml, suv in product(FLOORS_ML, GATES_SUV)]


@dataclass(frozen=True)
class Setting:
    """What components of each class must reach to stay, and the official scores that this gives."""

    gtvp: Bar
    gtvn: Bar
    scores: Scores

    @property
    def rules(self) -> dict[str, Any]:
        """The same as a bundle's `decision` has it."""
        floors = dict(zip(CLASSES, (self.gtvp.ml, self.gtvn.ml), strict=True))
        return {"min_component_ml": floors, "node_suv_peak": self.gtvn.suv or None}


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and what it is worth.

    Args:
        cases: How many it rests on.
        nothing: Every component kept.
        present: By the bundle's rules so far.
        chosen: By what was chosen; its scores are of the cases that chose it.
        cross_validated: GTVp DSC, GTVn DSCagg and GTVn F1agg, each case scored with what other cases chose.
    """

    cases: int
    nothing: Setting
    present: Setting
    chosen: Setting
    cross_validated: tuple[float, float, float]


def tune(bundle: Bundle, predictions: Path, root: Path) -> Tuning:
    """Chooses floors and gate for a bundle's last stage.

    The GTVp floor is chosen by GTVp DSC (cases without GTVp on either side score 1), the GTVn floor and gate
    together by the mean of GTVn DSCagg and GTVn F1agg, which count alike in the challenge's ranking. Under
    `cover=all` floors also keep specks of the coarse prediction from getting a cube of their own, which
    nobody sees here.

    Args:
        bundle: The bundle.
        predictions: What `infer.py unseen=true decision.min_component_ml=0 decision.node_suv_peak=0` wrote.
        root: The cohort, with true masks.

    Raises:
        HnsegError: A bundle without a fine stage of GTVp and GTVn, predictions that must not be tuned on, or
            files that cannot be read.
    """
    fine = bundle.of_stage("fine")
    if not fine or tuple(fine[0].stage.classes) != CLASSES:
        raise HnsegError(f"{bundle.path}: has no fine member that finds GTVp and GTVn; export one too")
    present = Decision.from_dict(bundle.decision, CLASSES)
    pairs = pair_up(root, predictions, present)
    require_same_bundle(predictions, [case for case, _ in pairs], bundle)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:  # reading images releases Python's lock
        measured = pool.map(lambda pair: read_components(*pair), pairs)
        console = Console(stderr=True)
        cases = list(track(measured, description="Measuring", total=len(pairs), console=console))
    return choose_bars(cases, present)


def choose_bars(cases: Sequence[CaseComponents], present: Decision) -> Tuning:
    """As `tune`, of cases that have been measured.

    Args:
        cases: One entry a case.
        present: The rules so far.
    """
    tumours = choose(_trials([case.gtvp for case in cases], TUMOUR_BARS, _tumour_terms))
    nodes = choose(_trials([case.gtvn for case in cases], NODE_BARS, _node_terms))

    def setting(gtvp: Bar, gtvn: Bar) -> Setting:
        return Setting(gtvp, gtvn, aggregate(case.counts(gtvp, gtvn) for case in cases))

    gtvp_ml, gtvn_ml = present.floors(CLASSES)
    dsc, dsc_agg, f1_agg = map(float, (*tumours.cross_validated, *nodes.cross_validated))
    return Tuning(
        cases=len(cases),
        nothing=setting(Bar(), Bar()),
        present=setting(Bar(gtvp_ml), Bar(gtvn_ml, present.node_suv_peak or 0.0)),
        chosen=setting(TUMOUR_BARS[tumours.setting], NODE_BARS[nodes.setting]),
        cross_validated=(dsc, dsc_agg, f1_agg),
    )


def _trials(
    cases: Sequence[Components],
    bars: Sequence[Bar],
    terms: Callable[[Overlap, Overlaps], list[tuple[float, float]]],
) -> Trials:
    """Every bar on every case."""
    left = [[one.over(bar) for bar in bars] for one in cases]
    added = [[terms(one.volumes(some), some) for some in row] for one, row in zip(cases, left, strict=True)]
    kept = np.array([[len(some.prediction_size) for some in row] for row in left])
    return Trials(np.array(added, dtype=np.float64), kept[:, :1] - kept)


def _tumour_terms(volumes: Overlap, _: Overlaps) -> list[tuple[float, float]]:
    dice = volumes.dice_or("one")
    assert dice is not None  # as under `skip` alone
    return [(dice, 1)]


def _node_terms(volumes: Overlap, left: Overlaps) -> list[tuple[float, float]]:
    found = match(left)
    return [
        (2 * volumes.intersection, volumes.prediction + volumes.truth),
        (2 * found.tp, 2 * found.tp + found.fp + found.fn),
    ]
