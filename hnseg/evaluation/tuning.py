"""Post-processing chosen on out-of-fold predictions: which components of a mask are worth keeping."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hnseg.errors import HnsegError, few
from hnseg.evaluation.score import crop_to_labels, find_masks, read_masks
from hnseg.evaluation.statistics import ratio
from hnseg.files import read_table
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.checks import SUV_LIMIT, SUV_REMEDY
from hnseg.imaging.images import to_array
from hnseg.imaging.suv import read_pet
from hnseg.inference.decision import Decision
from hnseg.inference.postprocess import components, least_voxels, suv_peak
from hnseg.inference.record import TABLE
from hnseg.metrics.lesions import Overlaps, match, overlapping_lesions
from hnseg.metrics.official import GTVN, GTVP, CaseCounts, Overlap, Scores, aggregate
from hnseg.models.bundle import Bundle

FOLDS, REPEATS = 5, 20


@dataclass(frozen=True)
class Trials:
    """What each setting makes of each case, in terms that add up over cases.

    Args:
        terms: (cases, settings, ratios, 2): numerators and denominators. A setting scores the mean of its
            ratios of sums over the cases; a ratio of nothing to nothing is 1, as in the official scores.
        dropped: (cases, settings) components dropped; the first setting drops none.
    """

    terms: NDArray[np.float64]
    dropped: NDArray[np.int64]

    def __getitem__(self, cases: NDArray[np.int64]) -> Trials:
        """The same for some of the cases."""
        return Trials(self.terms[cases], self.dropped[cases])

    def ratios(self, setting: int) -> NDArray[np.float64]:
        """(ratios,) of one setting over all cases."""
        return ratio(self.terms[:, setting].sum(axis=0))


@dataclass(frozen=True)
class Choice:
    """The setting taken.

    Args:
        setting: Its number.
        cross_validated: (ratios,) where each case is scored with the setting that other cases chose.
    """

    setting: int
    cross_validated: NDArray[np.float64]


def choose(trials: Trials) -> Choice:
    """Takes a setting as the module says; the first, which drops nothing, unless another proves better."""
    unbiased = cross_validate(trials)
    helps = unbiased.mean() > trials.ratios(0).mean()
    return Choice(one_standard_error(trials) if helps else 0, unbiased)


def one_standard_error(trials: Trials) -> int:
    """Of the settings within one standard error of the best, the one that drops fewest components.

    The standard errors are the jackknife's (one case left out at a time), since scores are ratios of sums.
    """
    total = trials.terms.sum(axis=0)
    scores = ratio(total).mean(axis=-1)
    best = int(scores.argmax())
    without = ratio(total - trials.terms).mean(axis=-1)  # (cases, settings)
    behind = without[:, [best]] - without
    error = np.sqrt((len(behind) - 1) * behind.var(axis=0))
    close = np.flatnonzero(scores[best] - scores <= error)
    return int(close[trials.dropped.sum(axis=0)[close].argmin()])  # between equals the first


def cross_validate(trials: Trials) -> NDArray[np.float64]:
    """(ratios,) of `one_standard_error`, chosen on four fifths of the cases and scored on the fifth left.

    Mean over repeated partitions, seeded: the same cases give the same figures.
    """
    rng, cases = np.random.default_rng(0), np.arange(len(trials.terms))
    scores = []
    for _ in range(REPEATS):
        total = np.zeros(trials.terms.shape[2:])
        for held_out in np.array_split(rng.permutation(cases), FOLDS):
            setting = one_standard_error(trials[np.setdiff1d(cases, held_out)])
            total += trials.terms[held_out, setting].sum(axis=0)
        scores.append(ratio(total))
    return np.mean(scores, axis=0)


class Bar(NamedTuple):
    """What a component must reach to stay: a volume in ml and, of nodes, a SUVpeak; 0 asks for nothing."""

    ml: float = 0.0
    suv: float = 0.0


@dataclass(frozen=True)
class Components:
    """The components of one class in one case.

    Args:
        overlaps: Predicted and true ones, and what they share.
        voxel_ml: Volume of a voxel.
        peaks: (predicted components,) SUVpeak, infinite where the PET does not reach one; None: not measured.
    """

    overlaps: Overlaps
    voxel_ml: float
    peaks: NDArray[np.float64] | None = None

    def over(self, bar: Bar) -> Overlaps:
        """What is left of the prediction when what does not reach the bar is dropped."""
        keep = self.overlaps.prediction_size >= least_voxels(bar.ml, self.voxel_ml)
        if bar.suv and self.peaks is not None:
            keep &= self.peaks >= bar.suv
        return self.overlaps.keep_predictions(keep)

    def volumes(self, left: Overlaps) -> Overlap:
        """The overlap in mm³ of what is left."""
        voxels = (left.intersection.sum(), left.prediction_size.sum(), left.truth_size.sum())
        return Overlap(*(int(count) * self.voxel_ml * 1000 for count in voxels))


@dataclass(frozen=True)
class CaseComponents:
    """The components of one case: GTVp, and GTVn with their SUVpeaks."""

    gtvp: Components
    gtvn: Components

    def counts(self, gtvp: Bar, gtvn: Bar) -> CaseCounts:
        """The case's share of the official scores after post-processing."""
        nodes = self.gtvn.over(gtvn)
        return CaseCounts(
            gtvp=self.gtvp.volumes(self.gtvp.over(gtvp)),
            gtvn=self.gtvn.volumes(nodes),
            lesions=match(nodes),
        )


def read_components(case: Case, prediction: Path) -> CaseComponents:
    """Measures a case.

    Args:
        case: With a true mask; its PET must be SUV.
        prediction: A mask on the truth's grid, nothing dropped from it.

    Raises:
        HnsegError: Files that cannot be read, masks on two grids, or a PET that is not SUV.
    """
    assert case.label is not None
    predicted, true = read_masks(prediction, case.label)
    pet = read_pet(case)
    peaks = [suv_peak(part, pet) for _, part in components(predicted, GTVN)]
    if strange := [peak for peak in peaks if peak is not None and peak > SUV_LIMIT]:
        raise HnsegError(f"{case.pet}: SUVpeak {strange[0]:.3g} in a node, Bq/ml or counts; {SUV_REMEDY}")
    voxel_ml = float(np.prod(predicted.GetSpacing())) / 1000
    labels, truth = crop_to_labels(to_array(predicted), to_array(true))
    gtvp, gtvn = (overlapping_lesions(labels == name, truth == name) for name in (GTVP, GTVN))
    shown = np.array([np.inf if peak is None else peak for peak in peaks])
    return CaseComponents(Components(gtvp, voxel_ml), Components(gtvn, voxel_ml, shown))


CLASSES = ("GTVp", "GTVn")
# Fewer say nothing of other cases.
MIN_CASES = 10
TUNED = ("min_component_ml", "node_suv_peak")
_COMMAND = "python infer.py unseen=true decision.min_component_ml=0 decision.node_suv_peak=0"


def pair_up(root: Path, predictions: Path, present: Decision) -> list[tuple[Case, Path]]:
    """The cases of a cohort, each with its prediction.

    Args:
        root: A cohort with true masks.
        predictions: What infer.py wrote for it.
        present: The rules of the bundle that is to be tuned.

    Raises:
        HnsegError: Too few cases; cases without true mask or prediction; predictions of networks that were
            trained on the case, of an earlier stage, or by other rules than the bundle's without floors and
            gate.
    """
    cases = read_cases(root)
    if len(cases) < MIN_CASES:
        raise HnsegError(
            f"{root}: {len(cases)} cases; tuning on fewer than {MIN_CASES} says nothing of others"
        )
    names = [case.case_id for case in cases]
    _refuse([case.case_id for case in cases if case.label is None], f"{root}: no true mask of", "add them")
    rows, masks = _rows(predictions / TABLE), find_masks(predictions)
    whole = [name for name in names if name in masks and rows.get(name, {}).get("status") == "ok"]
    _refuse(
        [name for name in names if name not in whole],
        f"{predictions}: no finished prediction of",
        f"make them with {_COMMAND}, or name a CSV without them instead of {root}",
    )
    _refuse(
        [name for name in names if rows[name].get("unseen") != "yes"],
        f"{predictions}: made by networks trained on",
        f"make them anew with {_COMMAND}",
    )
    _refuse(
        [name for name in names if not rows[name].get("fine_s")],
        f"{predictions}: not the fine stage's masks:",
        f"make them anew with {_COMMAND}",
    )
    for name in names:
        _check_rules(predictions / TABLE, rows[name], present)
    return [(case, masks[case.case_id]) for case in cases]


def require_same_bundle(predictions: Path, cases: Sequence[Case], bundle: Bundle) -> None:
    """Refuses predictions of other members than those whose rules are tuned.

    Raises:
        HnsegError: Another bundle made them.
    """
    rows, identity = _rows(predictions / TABLE), bundle.identity
    made_by = {case.case_id: rows[case.case_id].get("made_from", "").partition("-")[0] for case in cases}
    _refuse(
        [name for name, other in made_by.items() if other != identity],
        f"{predictions}: another bundle than {bundle.path} made",
        f"make them anew with {_COMMAND} bundle={bundle.path}, or tune the bundle that made them",
    )


def _rows(path: Path) -> dict[str, dict[str, str]]:
    """The lines of cases.csv by case."""
    if not path.is_file():
        raise HnsegError(
            f"{path}: no such file, so nobody knows how the masks were made; make them with {_COMMAND}"
        )
    _, rows = read_table(path, f"make them anew with {_COMMAND}", ("case_id",))
    return {row["case_id"]: row for row in rows}


def _refuse(names: Sequence[str], fault: str, remedy: str) -> None:
    if names:
        raise HnsegError(f"{fault} {few(names)}; {remedy}")


def _check_rules(path: Path, row: Mapping[str, str], present: Decision) -> None:
    """Refuses a mask from which something was dropped, or that other rules decided than will be in force."""
    try:
        made_by = Decision.from_dict(json.loads(row["rules"]), CLASSES)
    except (KeyError, ValueError, AttributeError) as error:  # no column, no JSON, no mapping
        raise HnsegError(
            f"{path}: does not say by which rules {row['case_id']} was decided; make it anew with {_COMMAND}"
        ) from error
    where = f"{path}: {row['case_id']} was made with"
    if any(made_by.floors(CLASSES)) or made_by.node_suv_peak:
        used = " ".join(f"decision.{key}={getattr(made_by, key)}" for key in TUNED)
        raise HnsegError(
            f"{where} {used}, and what was dropped cannot be judged; make it anew with {_COMMAND}"
        )
    for key, value in asdict(made_by).items():
        if key not in TUNED and value != getattr(present, key):
            raise HnsegError(
                f"{where} {key}={value}, the bundle has {getattr(present, key)}; make it anew with its own"
            )


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


def print_tuning(tuning: Tuning, console: Console | None = None) -> None:
    """Prints the rules so far, those that were chosen, and the official scores of each."""
    table = Table(title=f"Post-processing, {tuning.cases} cases out of fold")
    table.add_column("")
    for heading in ("nothing dropped", "so far", "chosen", "cross-validated"):
        table.add_column(heading, justify="right")
    settings = (tuning.nothing, tuning.present, tuning.chosen)
    bars = zip(*(_bars(setting) for setting in settings), strict=True)
    for name, row in zip(("GTVp least ml", "GTVn least ml", "GTVn least SUVpeak"), bars, strict=True):
        table.add_row(name, *row, "")
    scores = zip(*(_official(one.scores) for one in settings), tuning.cross_validated, strict=True)
    for name, figures in zip(("GTVp DSC", "GTVn DSCagg", "GTVn F1agg"), scores, strict=True):
        table.add_row(name, *map(_figure, figures))
    table.add_row("GTVn false", *(str(one.scores["fp"]) for one in settings), "")
    table.add_row("GTVn missed", *(str(one.scores["fn"]) for one in settings), "")
    console = console or Console()
    console.print(table)
    console.print(
        "Chosen: what drops least within one standard error of the best; nothing, where that does not help "
        "cases that had no say in it (cross-validated). The chosen scores are of the cases that chose: they "
        "flatter."
    )


def model_card_note(tuning: Tuning) -> str:
    """What the model card says of where the rules come from."""
    before, after = ("/".join(map(_figure, _official(one.scores))) for one in (tuning.nothing, tuning.chosen))
    cross_validated = "/".join(map(_figure, tuning.cross_validated))
    return (
        "min_component_ml and node_suv_peak were chosen by hnseg tune-postprocess on "
        f"{tuning.cases} cases out of fold: GTVp DSC/GTVn DSCagg/GTVn F1agg {before} with nothing dropped, "
        f"{after} with them, cross-validated {cross_validated}"
    )


def _bars(setting: Setting) -> list[str]:
    return [f"{bar:g}" if bar else "none" for bar in (setting.gtvp.ml, *setting.gtvn)]


def _official(scores: Scores) -> tuple[float | None, float, float]:
    return scores["gtvp_dsc"], scores["gtvn_dsc_agg"], scores["gtvn_f1_agg"]


def _figure(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"
