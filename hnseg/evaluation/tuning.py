"""Post-processing chosen on out-of-fold predictions: which components of a mask are worth keeping.

For each class a grid of thresholds is tried. Of those whose official scores lie within one standard error of
the best, the one that drops fewest components is chosen (the "1 SE rule" of Breiman et al. 1984), and only if
that choice helps cases that had no part in it (cross-validation).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from hnseg.card import Decision
from hnseg.errors import HnsegError, few
from hnseg.evaluation.score import crop_to_labels, find_masks
from hnseg.evaluation.statistics import ratio
from hnseg.files import print_table, table_console
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.checks import SUV_LIMIT, SUV_REMEDY
from hnseg.imaging.images import read_label, read_mask, to_array
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.suv import read_pet
from hnseg.inference.decision import read_decision
from hnseg.inference.postprocess import components, least_voxels, suv_peak
from hnseg.inference.records import Record, read_records
from hnseg.metrics.lesions import Overlaps, match, overlapping_lesions
from hnseg.metrics.official import CLASSES, GTVN, SCORES, TITLES, CaseCounts, Overlap, Scores, aggregate
from hnseg.models.bundle import Bundle

MIN_CASES = 10  # fewer say nothing about other cases
FOLDS, REPEATS = 5, 20  # of the cross-validation
TUNED = ("min_component_ml", "node_suv_peak")
_COMMAND = "python infer.py out_of_fold=true decision.min_component_ml=0 decision.node_suv_peak=0"


class Threshold(NamedTuple):
    """What a component must reach to stay: a volume in ml and, of nodes, a SUVpeak; 0 keeps everything."""

    ml: float = 0.0
    suv_peak: float = 0.0


VOLUMES_ML = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
SUV_PEAKS = (0.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
CANDIDATES: Mapping[str, Sequence[Threshold]] = {
    "GTVp": [Threshold(ml) for ml in VOLUMES_ML],
    "GTVn": [Threshold(ml, suv) for ml, suv in product(VOLUMES_ML, SUV_PEAKS)],
}
CHOSEN_BY = {"GTVp": slice(0, 1), "GTVn": slice(1, 3)}  # of SCORES: GTVp DSC; mean of GTVn DSCagg and F1agg


@dataclass(frozen=True)
class Trials:
    """What each candidate gives on each case, in terms that add up over cases.

    Attributes:
        terms: (cases, candidates, scores, 2): numerators and denominators. A candidate is worth the mean of
            its scores, each a ratio of sums over the cases.
        dropped: (cases, candidates) components dropped; the first candidate drops none.
    """

    terms: NDArray[np.float64]
    dropped: NDArray[np.int64]

    def __getitem__(self, cases: NDArray[np.int64]) -> Trials:
        """The same for some of the cases."""
        return Trials(self.terms[cases], self.dropped[cases])


def choose(trials: Trials) -> tuple[int, NDArray[np.float64]]:
    """Choose a candidate: the first, which drops nothing, unless another helps in cross-validation.

    Returns:
        Its index, and the cross-validated scores.
    """
    cross_validated = cross_validate(trials)
    unfiltered = ratio(trials.terms[:, 0].sum(axis=0))
    helps = cross_validated.mean() > unfiltered.mean()
    return one_standard_error(trials) if helps else 0, cross_validated


def one_standard_error(trials: Trials) -> int:
    """Of the candidates within one standard error of the best, the one that drops fewest components.

    The standard errors are the jackknife's (one case left out at a time), since scores are ratios of sums.
    """
    total = trials.terms.sum(axis=0)
    scores = ratio(total).mean(axis=-1)
    best = int(scores.argmax())
    without = ratio(total - trials.terms).mean(axis=-1)  # (cases, candidates)
    behind = without[:, [best]] - without
    error = np.sqrt((len(behind) - 1) * behind.var(axis=0))
    close = np.flatnonzero(scores[best] - scores <= error)
    return int(close[trials.dropped.sum(axis=0)[close].argmin()])  # of equals the first


def cross_validate(trials: Trials) -> NDArray[np.float64]:
    """(scores,) of `one_standard_error`, chosen on four fifths of the cases and scored on the other fifth.

    Mean over repeated partitions, seeded: the same cases give the same figures.
    """
    rng, cases = np.random.default_rng(0), np.arange(len(trials.terms))
    scores = []
    for _ in range(REPEATS):
        total = np.zeros(trials.terms.shape[2:])
        for held_out in np.array_split(rng.permutation(cases), FOLDS):
            candidate = one_standard_error(trials[np.setdiff1d(cases, held_out)])
            total += trials.terms[held_out, candidate].sum(axis=0)
        scores.append(ratio(total))
    return np.mean(scores, axis=0)


@dataclass(frozen=True)
class Components:
    """The components of one class in one case.

    Attributes:
        overlaps: Predicted and ground-truth components, and what they share.
        voxel_ml: Volume of a voxel.
        suv_peaks: (predicted components,), infinite outside the PET's field of view; None: not measured.
    """

    overlaps: Overlaps
    voxel_ml: float
    suv_peaks: NDArray[np.float64] | None = None

    def kept(self, threshold: Threshold) -> NDArray[np.bool_]:
        """(predicted components,) those that reach the threshold."""
        kept = self.overlaps.prediction_size >= least_voxels(threshold.ml, self.voxel_ml)
        if threshold.suv_peak and self.suv_peaks is not None:
            kept &= self.suv_peaks >= threshold.suv_peak
        return kept


CaseComponents = Mapping[str, Components]  # by class


def count_filtered(case: CaseComponents, thresholds: Mapping[str, Threshold]) -> CaseCounts:
    """A case's share of the official scores after post-processing; classes without threshold stay whole."""
    overlaps, volumes = {}, {}
    for name, part in case.items():
        left = part.overlaps.keep_predictions(part.kept(thresholds.get(name, Threshold())))
        voxels = (left.intersection.sum(), left.prediction_size.sum(), left.truth_size.sum())
        overlaps[name], volumes[name] = left, Overlap(*(int(n) * part.voxel_ml * 1000 for n in voxels))
    return CaseCounts(volumes["GTVp"], volumes["GTVn"], match(overlaps["GTVn"]))


def read_components(case: Case, prediction: Path) -> CaseComponents:
    """Measure a case.

    Args:
        case: With a ground-truth mask; its PET must be in SUV.
        prediction: A mask on the same grid, without post-processing.

    Raises:
        HnsegError: Files that cannot be read, masks on two grids, or a PET that is not in SUV.
    """
    assert case.label is not None
    true = read_label(case.label)
    predicted = read_mask(prediction, true)
    pet = read_pet(case)
    peaks = [suv_peak(part, pet) for _, part in components(predicted, GTVN)]
    if excess := [peak for peak in peaks if peak is not None and peak > SUV_LIMIT]:
        raise HnsegError(f"{case.pet}: SUVpeak {excess[0]:.3g} in a node, Bq/ml or counts; {SUV_REMEDY}")
    suv_peaks = {"GTVn": np.array([np.inf if peak is None else peak for peak in peaks])}
    labels, truth = crop_to_labels(to_array(predicted), to_array(true))
    ml = voxel_ml(predicted.GetSpacing())
    return {
        name: Components(overlapping_lesions(labels == label, truth == label), ml, suv_peaks.get(name))
        for name, label in CLASSES.items()
    }


@dataclass(frozen=True)
class Setting:
    """A threshold for each class, and the official scores that they give."""

    thresholds: Mapping[str, Threshold]
    scores: Scores

    @property
    def rules(self) -> dict[str, Any]:
        """The same as a bundle's `decision` has it."""
        volumes = {name: threshold.ml for name, threshold in self.thresholds.items()}
        return {"min_component_ml": volumes, "node_suv_peak": self.thresholds["GTVn"].suv_peak or None}


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and its scores.

    Attributes:
        cases: Number of cases.
        unfiltered: Every component kept.
        present: The bundle's rules so far.
        chosen: The choice; its scores are on the cases that chose it.
        cross_validated: GTVp DSC, GTVn DSCagg and GTVn F1agg, each case scored with the choice of others.
    """

    cases: int
    unfiltered: Setting
    present: Setting
    chosen: Setting
    cross_validated: Sequence[float]


def tune(bundle: Bundle, predictions: Path, root: Path) -> Tuning:
    """Choose volume thresholds, and one of SUVpeak for nodes, for a bundle's fine stage.

    The GTVp volume is chosen by GTVp DSC (cases without GTVp on either side score 1), the GTVn volume and
    SUVpeak together by the mean of GTVn DSCagg and GTVn F1agg, which count alike in the challenge's ranking.
    Under `roi_cover=multiple` the volumes also keep specks of the coarse prediction from getting a cube of
    their own, which is not measured here.

    Args:
        bundle: The bundle.
        predictions: What infer.py wrote out of fold, without post-processing.
        root: The cohort, with ground-truth masks.

    Raises:
        HnsegError: A bundle without a fine stage of GTVp and GTVn, too few cases, or predictions that must
            not be tuned on.
    """
    fine = bundle.of_stage("fine")
    if not fine or tuple(fine[0].stage.classes) != tuple(CLASSES):
        raise HnsegError(f"{bundle.path}: has no fine member that finds GTVp and GTVn; export one too")
    present = read_decision(bundle.decision)
    cases = read_cases(root)
    if len(cases) < MIN_CASES:
        raise HnsegError(
            f"{root}: {len(cases)} cases; tuning on fewer than {MIN_CASES} says nothing about others"
        )
    if unlabelled := [case.case_id for case in cases if case.label is None]:
        raise HnsegError(f"{root}: no ground-truth mask of {few(unlabelled)}; add them")
    masks = require_tunable(predictions, cases, bundle.identity, present)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:  # reading images releases Python's lock
        measured = pool.map(read_components, cases, masks)
        progress = track(measured, "Measuring", total=len(cases), console=Console(stderr=True))
        return choose_thresholds(list(progress), present)


def require_tunable(predictions: Path, cases: Sequence[Case], identity: str, present: Decision) -> list[Path]:
    """The masks of the cases; refuses those on which nothing can be tuned.

    Args:
        predictions: What infer.py wrote.
        cases: The cohort.
        identity: Of the bundle whose rules are tuned.
        present: Its rules.

    Raises:
        HnsegError: Masks that are missing, or were made with networks trained on the case, by an earlier
            stage, by another bundle, by other rules, or with post-processing.
    """
    records, masks = read_records(predictions), find_masks(predictions)
    faults: dict[str, list[str]] = {}
    for case in cases:
        record = records.get(case.case_id)
        if case.case_id not in masks or record is None or record.status != "ok":
            fault = "no finished prediction of"
        else:
            fault = _fault(record, identity, present)
        faults.setdefault(fault, []).append(case.case_id)
    for fault, case_ids in faults.items():
        if fault:
            raise HnsegError(f"{predictions}: {fault} {few(case_ids)}; make them anew with {_COMMAND}")
    return [masks[case.case_id] for case in cases]


def _fault(record: Record, identity: str, present: Decision) -> str:
    """Why a mask must not be tuned on; '' if it may be."""
    if not record.out_of_fold:
        return "made by networks trained on the case:"
    if record.stage != "fine":
        return "not the fine stage's masks:"
    if record.bundle != identity:
        return "another bundle made"
    made_with = read_decision(record.rules)
    if any(made_with.floors(tuple(CLASSES))) or made_with.node_suv_peak:
        used = " ".join(f"decision.{key}={getattr(made_with, key)}" for key in TUNED)
        return f"components were dropped with {used}:"
    for key, value in asdict(made_with).items():
        if key not in TUNED and value != getattr(present, key):
            return f"decided with {key}={value} where the bundle has {getattr(present, key)}:"
    return ""


def choose_thresholds(cases: Sequence[CaseComponents], present: Decision) -> Tuning:
    """As `tune`, on cases that have been measured.

    Args:
        cases: One entry a case.
        present: The rules so far.
    """

    def setting(thresholds: Mapping[str, Threshold]) -> Setting:
        return Setting(thresholds, aggregate(count_filtered(case, thresholds) for case in cases))

    chosen, cross_validated = {}, list[float]()
    for name, candidates in CANDIDATES.items():
        counts = [[count_filtered(case, {name: c}) for c in candidates] for case in cases]
        terms = [[count.terms()[CHOSEN_BY[name]] for count in row] for row in counts]
        dropped = [[int((~case[name].kept(c)).sum()) for c in candidates] for case in cases]
        index, scores = choose(Trials(np.array(terms, np.float64), np.array(dropped)))
        chosen[name] = candidates[index]
        cross_validated += scores.tolist()
    volumes = dict(zip(CLASSES, present.floors(tuple(CLASSES)), strict=True))
    return Tuning(
        cases=len(cases),
        unfiltered=setting(dict.fromkeys(CLASSES, Threshold())),
        present=setting(
            {
                "GTVp": Threshold(volumes["GTVp"]),
                "GTVn": Threshold(volumes["GTVn"], present.node_suv_peak or 0.0),
            }
        ),
        chosen=setting(chosen),
        cross_validated=cross_validated,
    )


def print_tuning(tuning: Tuning, console: Console | None = None) -> None:
    """Print the rules so far and those chosen, and the official scores of each."""
    settings = (tuning.unfiltered, tuning.present, tuning.chosen)
    used = [[s.thresholds["GTVp"].ml, *s.thresholds["GTVn"]] for s in settings]
    rows = [
        [name, *(f"{value:g}" if value else "none" for value in values), ""]
        for name, *values in zip(("GTVp least ml", "GTVn least ml", "GTVn least SUVpeak"), *used, strict=True)
    ]
    scores = [_scores(setting) for setting in settings]
    rows += [
        [TITLES[score], *map("{:.4f}".format, values)]
        for score, *values in zip(SCORES[:3], *scores, tuning.cross_validated, strict=True)
    ]
    rows += [["GTVn false", *(str(s.scores["fp"]) for s in settings), ""]]
    rows += [["GTVn missed", *(str(s.scores["fn"]) for s in settings), ""]]
    console = console or table_console()
    headings = ["", "nothing dropped", "so far", "chosen", "cross-validated"]
    print_table(headings, rows, f"Post-processing, {tuning.cases} cases out of fold", console)
    console.print(
        "Chosen: what drops fewest components within one standard error of the best; nothing, where that "
        "does not help cases that had no part in the choice (cross-validated). The chosen scores are on the "
        "cases that chose: they are optimistic."
    )


def model_card_note(tuning: Tuning) -> str:
    """What the model card says about the origin of the rules."""
    before, after, cross_validated = (
        "/".join(map("{:.4f}".format, scores))
        for scores in (_scores(tuning.unfiltered), _scores(tuning.chosen), tuning.cross_validated)
    )
    return (
        "min_component_ml and node_suv_peak were chosen by hnseg tune-postprocess on "
        f"{tuning.cases} cases out of fold: GTVp DSC/GTVn DSCagg/GTVn F1agg {before} with nothing dropped, "
        f"{after} with them, cross-validated {cross_validated}"
    )


def _scores(setting: Setting) -> tuple[float, float, float]:
    scores = setting.scores
    assert scores["gtvp_dsc"] is not None  # as under `skip` alone
    return scores["gtvp_dsc"], scores["gtvn_dsc_agg"], scores["gtvn_f1_agg"]
