"""Post-processing chosen on out-of-fold predictions: which components of a mask are worth keeping.

For each class a grid of thresholds is tried. Of those whose official scores lie within one standard error of
the best, the one that drops fewest components is chosen (the "1 SE rule" of Breiman et al. 1984), and only if
that choice helps cases that had no part in it (cross-validation).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from hnseg.card import Decision
from hnseg.errors import HnsegError
from hnseg.evaluation.score import crop_to_labels, find_masks
from hnseg.evaluation.statistics import Array, ratio
from hnseg.files import print_table
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.images import read_label, read_mask, to_array
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.suv import read_pet
from hnseg.inference.decision import components, least_voxels, uptake
from hnseg.inference.records import Record, read_records
from hnseg.metrics.lesions import Overlaps, match, overlapping_lesions
from hnseg.metrics.official import CLASSES, GTVN, SCORES, TITLES, CaseCounts, Overlap, Scores, aggregate
from hnseg.models.bundle import Bundle

MIN_CASES = 10  # fewer say nothing about other cases
FOLDS, REPEATS = 5, 20  # of the cross-validation
_COMMAND = "hnseg infer out_of_fold=true decision.min_component_ml=0 decision.node_suv_peak=0"

Counts = NDArray[np.int64]


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


def choose(terms: Array, dropped: Counts) -> tuple[int, Array]:
    """Choose a candidate: the first, which drops nothing, unless another helps in cross-validation.

    Args:
        terms: (cases, candidates, scores, 2): numerators and denominators. A candidate is worth the mean of
            its scores, each a ratio of sums over the cases.
        dropped: (cases, candidates) components dropped.

    Returns:
        Its index, and the cross-validated scores.
    """
    cross_validated = cross_validate(terms, dropped)
    unfiltered = ratio(terms[:, 0].sum(axis=0))
    helps = cross_validated.mean() > unfiltered.mean()
    return one_standard_error(terms, dropped) if helps else 0, cross_validated


def one_standard_error(terms: Array, dropped: Counts) -> int:
    """Of the candidates within one standard error of the best, the one that drops fewest components.

    The standard errors are the jackknife's (one case left out at a time), since scores are ratios of sums.
    """
    total = terms.sum(axis=0)
    scores = ratio(total).mean(axis=-1)
    best = int(scores.argmax())
    without = ratio(total - terms).mean(axis=-1)  # (cases, candidates)
    behind = without[:, [best]] - without
    error = np.sqrt((len(behind) - 1) * behind.var(axis=0))
    close = np.flatnonzero(scores[best] - scores <= error)
    return int(close[dropped.sum(axis=0)[close].argmin()])  # of equals the first


def cross_validate(terms: Array, dropped: Counts) -> Array:
    """(scores,) of `one_standard_error`, chosen on four fifths of the cases and scored on the other fifth.

    Mean over repeated partitions, seeded: the same cases give the same figures.
    """
    rng, cases = np.random.default_rng(0), np.arange(len(terms))
    scores = []
    for _ in range(REPEATS):
        total = np.zeros(terms.shape[2:])
        for held_out in np.array_split(rng.permutation(cases), FOLDS):
            others = np.setdiff1d(cases, held_out)
            candidate = one_standard_error(terms[others], dropped[others])
            total += terms[held_out, candidate].sum(axis=0)
        scores.append(ratio(total))
    return np.mean(scores, axis=0)


class Components(NamedTuple):
    """The components of one class in one case.

    Attributes:
        overlaps: Predicted and ground-truth components, and what they share.
        voxel_ml: Volume of a voxel.
        suv_peaks: (predicted components,), infinite outside the PET's field of view; None: not measured.
    """

    overlaps: Overlaps
    voxel_ml: float
    suv_peaks: Array | None = None

    def kept(self, threshold: Threshold) -> NDArray[np.bool_]:
        """(predicted components,) those that reach the threshold."""
        kept = self.overlaps.prediction_size >= least_voxels(threshold.ml, self.voxel_ml)
        if threshold.suv_peak and self.suv_peaks is not None:
            kept &= self.suv_peaks >= threshold.suv_peak
        return kept


CaseComponents = Mapping[str, Components]  # by class


def read_components(case: Case, prediction: Path) -> CaseComponents:
    """Measure a labelled case and its mask, which was made without post-processing."""
    assert case.label is not None
    true = read_label(case.label)
    predicted, pet = read_mask(prediction, true), read_pet(case)
    nodes = [uptake(part, pet) for _, part in components(predicted, GTVN)]
    suv_peaks = {"GTVn": np.array([np.inf if suv is None else suv.peak for suv in nodes])}
    labels, truth = crop_to_labels(to_array(predicted), to_array(true))
    ml = voxel_ml(predicted.GetSpacing())
    return {
        name: Components(overlapping_lesions(labels == label, truth == label), ml, suv_peaks.get(name))
        for name, label in CLASSES.items()
    }


def count_filtered(case: CaseComponents, thresholds: Mapping[str, Threshold]) -> CaseCounts:
    """A case's share of the official scores after post-processing; classes without threshold stay whole."""
    overlaps, volumes = {}, {}
    for name, part in case.items():
        left = part.overlaps.keep_predictions(part.kept(thresholds.get(name, Threshold())))
        voxels = (left.intersection.sum(), left.prediction_size.sum(), left.truth_size.sum())
        overlaps[name], volumes[name] = left, Overlap(*(int(n) * part.voxel_ml * 1000 for n in voxels))
    return CaseCounts(volumes["GTVp"], volumes["GTVn"], match(overlaps["GTVn"]))


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and its scores.

    Attributes:
        cases: Number of cases.
        thresholds: The choice, by class.
        scores: With it, on the cases that chose it.
        unfiltered: With every component kept.
        cross_validated: GTVp DSC, GTVn DSCagg and GTVn F1agg, each case scored with the choice of others.
    """

    cases: int
    thresholds: Mapping[str, Threshold]
    scores: Scores
    unfiltered: Scores
    cross_validated: Sequence[float]

    @property
    def rules(self) -> dict[str, Any]:
        """The choice as a bundle's `decision` has it."""
        volumes = {name: threshold.ml for name, threshold in self.thresholds.items()}
        return {"min_component_ml": volumes, "node_suv_peak": self.thresholds["GTVn"].suv_peak or None}


def tune(bundle: Bundle, predictions: Path, root: Path) -> Tuning:
    """Choose volume thresholds, and one of SUVpeak for nodes, for a bundle's fine stage.

    The GTVp volume is chosen by GTVp DSC (cases without GTVp on either side score 1), the GTVn volume and
    SUVpeak together by the mean of GTVn DSCagg and GTVn F1agg, which count alike in the challenge's ranking.
    Under `roi_cover=multiple` the volumes also keep specks of the coarse prediction from getting a cube of
    their own, which is not measured here.

    Args:
        bundle: The bundle.
        predictions: What hnseg infer wrote out of fold, without post-processing.
        root: The cohort; cases without a ground-truth mask are left out.

    Raises:
        HnsegError: Too few cases, or predictions that must not be tuned on.
    """
    cases = [case for case in read_cases(root) if case.label]
    if len(cases) < MIN_CASES:
        raise HnsegError(
            f"{root}: {len(cases)} cases with a ground-truth mask; tuning on fewer than {MIN_CASES} says "
            "nothing about others"
        )
    masks = require_tunable(predictions, cases, bundle.identity, bundle.decision)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:  # reading images releases Python's lock
        measured = pool.map(read_components, cases, masks)
        progress = track(measured, "Measuring", total=len(cases), console=Console(stderr=True))
        return choose_thresholds(list(progress))


def require_tunable(predictions: Path, cases: Sequence[Case], identity: str, rules: Decision) -> list[Path]:
    """The masks of the cases; refuses those on which nothing can be tuned.

    Args:
        predictions: What hnseg infer wrote.
        cases: The cohort.
        identity: Of the bundle that is tuned.
        rules: Of that bundle.

    Raises:
        HnsegError: A mask that is missing, or was made with networks trained on the case, by an earlier
            stage, by another bundle, by other rules, or with post-processing.
    """
    records, masks = read_records(predictions), find_masks(predictions)
    for case_id in (case.case_id for case in cases):
        record = records.get(case_id)
        if case_id not in masks or record is None or record.status != "ok":
            fault = "no finished prediction"
        else:
            fault = _fault(record, identity, rules)
        if fault:
            raise HnsegError(f"{predictions}: {case_id}: {fault}; make the masks anew with {_COMMAND}")
    return [masks[case.case_id] for case in cases]


def _fault(record: Record, identity: str, rules: Decision) -> str:
    made_with = record.rules or Decision()
    if not record.out_of_fold:
        return "made by networks trained on the case"
    if record.stage != "fine":
        return f"made by the {record.stage} stage"
    if record.bundle != identity:
        return "made by another bundle"
    if any(made_with.floors(tuple(CLASSES))) or made_with.node_suv_peak:
        return "components were dropped"
    ours, theirs = (replace(d, min_component_ml=0.0, node_suv_peak=None) for d in (rules, made_with))
    return "" if ours == theirs else "made with other rules than the bundle's"


def choose_thresholds(cases: Sequence[CaseComponents]) -> Tuning:
    """As `tune`, on cases that have been measured."""
    chosen, cross_validated = {}, list[float]()
    for name, candidates in CANDIDATES.items():
        counts = [[count_filtered(case, {name: c}) for c in candidates] for case in cases]
        terms = [[count.terms()[CHOSEN_BY[name]] for count in row] for row in counts]
        dropped = [[int((~case[name].kept(c)).sum()) for c in candidates] for case in cases]
        index, scores = choose(np.array(terms, np.float64), np.array(dropped))
        chosen[name] = candidates[index]
        cross_validated += scores.tolist()
    unfiltered, filtered = (aggregate(count_filtered(case, t) for case in cases) for t in ({}, chosen))
    return Tuning(len(cases), chosen, filtered, unfiltered, cross_validated)


def print_tuning(tuning: Tuning) -> None:
    """Print the chosen rules, and the official scores with and without them."""
    limits = [tuning.thresholds["GTVp"].ml, *tuning.thresholds["GTVn"]]
    rows = [
        [name, "none", f"{limit:g}" if limit else "none", ""]
        for name, limit in zip(("GTVp least ml", "GTVn least ml", "GTVn least SUVpeak"), limits, strict=True)
    ]
    both = (tuning.unfiltered, tuning.scores)
    for score, cross_validated in zip(SCORES[:3], tuning.cross_validated, strict=True):
        values = (*(scores[score] for scores in both), cross_validated)
        rows.append([TITLES[score], *map("{:.4f}".format, values)])
    rows += [["GTVn false", *(str(scores["fp"]) for scores in both), ""]]
    rows += [["GTVn missed", *(str(scores["fn"]) for scores in both), ""]]
    headings = ["", "nothing dropped", "chosen", "cross-validated"]
    print_table(headings, rows, f"Post-processing, {tuning.cases} cases out of fold")
    print(
        "Chosen: what drops fewest components within one standard error of the best; nothing, where that\n"
        "does not help cases that had no part in the choice (cross-validated). The chosen scores are on the\n"
        "cases that chose: they flatter the rules."
    )


def model_card_note(tuning: Tuning) -> str:
    """What the model card says about the origin of the rules."""
    before, after = ([scores[score] for score in SCORES[:3]] for scores in (tuning.unfiltered, tuning.scores))
    figures = ("/".join(map("{:.4f}".format, values)) for values in (before, after, tuning.cross_validated))
    return (
        "min_component_ml and node_suv_peak were chosen by hnseg tune-postprocess on {} cases out of fold: "
        "GTVp DSC/GTVn DSCagg/GTVn F1agg {} with nothing dropped, {} with them, cross-validated {}"
    ).format(tuning.cases, *figures)
