"""A sweep's runs → every arm's masks of every patient, out of fold, and the table that compares the arms.

An arm is an ensemble: the members that conf/arm/ARM.yaml names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hnseg.app import compose
from hnseg.config import Inference, read_inference
from hnseg.data.splits import read_split_file
from hnseg.devices import pick_devices
from hnseg.errors import HnsegError, few
from hnseg.evaluation.score import evaluate
from hnseg.evaluation.tables import ABLATION, ablation_rows, write_tables
from hnseg.files import replacing, write_json
from hnseg.imaging.case import Case
from hnseg.inference.ensemble import LogitsCache
from hnseg.inference.predict_cases import predict_cases
from hnseg.inference.setup import Setup
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import Checkpoint, Member, checkpoint_file
from hnseg.training.runs import Run, find_runs

SPLIT = "split.json"
_AGAIN = "python train.py sweeps=ablation data.root=PATH -m trains what is missing"


@dataclass(frozen=True)
class NetworkKind:
    """Networks that differ only in the fold that they were not trained on.

    Attributes:
        stage: Of the cascade.
        model: Their architecture; None is any.
        cte: Whether they see enhanced CT; None is either.
    """

    stage: str
    model: str | None = None
    cte: bool | None = None

    def __str__(self) -> str:
        enhanced = {None: "", True: "with enhancement", False: "without enhancement"}[self.cte]
        return " ".join(filter(None, (self.stage, self.model, enhanced)))

    def matches(self, run: Run) -> bool:
        """Whether a run trains a network of this kind."""
        return run.stage == self.stage and self.model in (None, run.model) and self.cte in (None, run.cte)


@dataclass(frozen=True)
class Sources:
    """The runs of all arms, one for each kind and fold, and the folds they share.

    Attributes:
        folders: Of the runs.
        fold_of: The fold that holds a case out, by case.
        project: The runs' W&B project.
    """

    folders: list[Path]
    fold_of: Mapping[str, int]
    project: str


def find_sources(root: Path, cases: Sequence[Case], kinds: Sequence[NetworkKind]) -> Sources:
    """The finished runs of all kinds, every fold of each.

    Args:
        root: A folder of runs, as a sweep leaves it.
        cases: The cohort.
        kinds: Of the networks needed; the folds of the last hold for all.

    Raises:
        HnsegError: Runs are missing, unfinished or ambiguous, their folds differ, or the cohort is another.
    """
    found = [run for run in find_runs(root) if run.fold.isdigit()]
    runs = {kind: _runs_by_fold(root, kind, found) for kind in kinds}
    reference = next(iter(runs[kinds[-1]].values())).path / SPLIT
    fold_of = _read_folds(reference)
    folds = range(1 + max(fold_of.values()))
    for kind, by_fold in runs.items():
        if missing := [str(fold) for fold in folds if fold not in by_fold]:
            raise HnsegError(
                f"{root}: no run of {kind} for fold {', '.join(missing)} of {len(folds)}; {_AGAIN}"
            )
        for run in by_fold.values():
            _require_same_folds(run.path / SPLIT, kind, reference, fold_of)
    _require_cohort(cases, fold_of, root)
    chosen = [run for by_fold in runs.values() for run in by_fold.values()]
    return Sources([run.path for run in chosen], fold_of, chosen[0].project)


def _runs_by_fold(root: Path, kind: NetworkKind, found: Sequence[Run]) -> dict[int, Run]:
    runs = [run for run in found if kind.matches(run)]
    trainings = dict.fromkeys(str(run.path.parent) for run in runs)
    if not runs:
        raise HnsegError(f"{root}: no run of {kind} in folds; {_AGAIN}")
    if len(trainings) > 1:
        raise HnsegError(
            f"{root}: several trainings of {kind} ({', '.join(trainings)}); give a folder with one"
        )
    if unfinished := [str(run.path) for run in runs if run.state != "finished"]:
        raise HnsegError(f"not finished: {', '.join(unfinished)}; run the same training command again")
    return {int(run.fold): run for run in runs}


def _read_folds(path: Path) -> dict[str, int]:
    """The fold that holds a case out, by case."""
    folds = read_split_file(path).folds
    return {case_id: fold for fold, case_ids in enumerate(folds) for case_id in case_ids}


def _require_same_folds(path: Path, kind: NetworkKind, reference: Path, fold_of: Mapping[str, int]) -> None:
    """Refuse folds that are not the reference's; of a head stage, whose masks may be few, only its cases'."""
    ours = _read_folds(path)
    for case_id in ours if kind.stage == "head" else {**ours, **fold_of}:
        fold, other = ours.get(case_id, "none"), fold_of.get(case_id, "none")
        if fold != other:
            raise HnsegError(
                f"{path}: case {case_id} is in fold {fold}, in {reference} in fold {other}; train both with "
                f"data.split={reference}"
            )


def _require_cohort(cases: Sequence[Case], fold_of: Mapping[str, int], root: Path) -> None:
    cohort = {case.case_id for case in cases}
    if absent := sorted(fold_of.keys() - cohort):
        raise HnsegError(
            f"--data lacks {few(absent)}, known to the runs of {root}; give the cohort they were trained on"
        )
    if unlisted := sorted(cohort - fold_of.keys()):
        raise HnsegError(
            f"--data has {few(unlisted)}, which no fold of {root} holds out; take them out, or train again"
        )
    if unlabelled := [case.case_id for case in cases if case.label is None]:
        raise HnsegError(
            f"--data has no ground-truth mask of {few(unlabelled)}; add CASE/CASE.nii.gz, or a CSV's label"
        )


ORACLE = "_oracle_roi"  # ends the names of arms that need the ground truth
# Keys that an ablation sets itself.
_OURS = (
    "cases",
    "bundle",
    "out",
    "format",
    "overwrite",
    "last_stage",
    "out_of_fold",
    "head_masks",
    "arm",
    "engine",
)


def read_arms(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    baseline: str | None = None,
    oracle: bool = False,
) -> dict[str, Inference]:
    """The call of infer.py that each arm stands for, by the name of the arm's folder.

    Args:
        names: Of conf/arm.
        overrides: As for infer.py.
        baseline: The arm that the others are compared with, by default the first. It comes first, and only
            it has probability maps unless the overrides say otherwise: the report draws its cases.
        oracle: Whether the ground truth places the fine ROI; the arms' names say so.

    Raises:
        HnsegError: No arm, an unknown arm or one without members, or overrides that do not fit.
    """
    names = list(dict.fromkeys(filter(None, map(str.strip, names))))
    if not names:
        raise HnsegError("--arms: names no arm; name some of conf/arm")
    first = names[0] if baseline is None else baseline
    if first not in names:
        raise HnsegError(f"--baseline {first}: not among the arms; choose from {', '.join(names)}")
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in _OURS:
            raise HnsegError(f"{text}: hnseg ablation sets {key} itself; leave it out")
    names.sort(key=lambda name: name != first)
    return {name + ORACLE * oracle: _read_arm(name, overrides, mapped=name == first) for name in names}


def _read_arm(name: str, overrides: Sequence[str], *, mapped: bool) -> Inference:
    ours = [f"arm={name}", "out_of_fold=true", "cases=unused", "bundle=unused", "out=unused"]
    maps = f"probabilities={str(mapped).lower()}"
    call = read_inference(compose([*ours, maps, *overrides], "infer"))
    if call.arm.members is None:
        raise HnsegError(f"--arms {name}: takes whatever members there are; name arms that say theirs")
    return call


def kinds_of(arms: Mapping[str, Inference], *, oracle: bool) -> list[NetworkKind]:
    """The networks that the arms need, the fine stage's last; an oracle ROI needs those alone."""
    placing = [] if oracle else [NetworkKind("head"), NetworkKind("coarse")]
    members = [member for call in arms.values() for member in call.arm.members or ()]
    fine = [NetworkKind("fine", member.model, member.cte) for member in members]
    return [*placing, *dict.fromkeys(fine)]


BUNDLE = "bundle"  # OUT/bundle
_MADE_OF = "made_of.json"  # in it: the checkpoints it was exported from


def predict(
    arms: Mapping[str, Inference],
    sources: Sources,
    cases: Sequence[Case],
    out: Path,
    *,
    oracle: bool = False,
    checkpoint: Checkpoint = "best",
) -> None:
    """Segment every case with every arm, into OUT/ARM; what an earlier call finished is skipped.

    Args:
        arms: As `read_arms` gives them.
        sources: The runs they are made of.
        cases: The cohort.
        out: The ablation's folder.
        oracle: The ground truth places the fine ROI, instead of head and coarse networks.
        checkpoint: Which of the runs' weights; these cases took part in choosing the best.

    Raises:
        HnsegError: Cases could not be segmented.
    """
    bundle = make_bundle(sources.folders, out / BUNDLE, checkpoint)
    require_out_of_fold(bundle, cases)
    options: dict[str, Any] = {"lesions": {case.case_id: case.label for case in cases}} if oracle else {}
    calls = {name: call.model_copy(update={"bundle": bundle.path}) for name, call in arms.items()}
    setups = {name: Setup.of(call) for name, call in calls.items()}
    first = next(iter(arms))
    devices = []
    for device in pick_devices(arms[first].trainer.device):
        # The arms share networks and what these gave for the case at hand: each runs once a case.
        shared = {"networks": setups[first].networks(device), "cache": LogitsCache(), **options}
        devices.append({out / name: setup.make(bundle, **shared) for name, setup in setups.items()})
    # Fold by fold, so that the networks of one fold stay loaded.
    in_order = sorted(cases, key=lambda case: (sources.fold_of[case.case_id], case.case_id))
    outcomes = predict_cases(in_order, devices)
    if failed := [outcome for outcome in outcomes if outcome.status == "error"]:
        ids = ", ".join(dict.fromkeys(outcome.case_id for outcome in failed))
        table = failed[0].out / "cases.csv"
        raise HnsegError(f"not segmented: {ids} (reasons in {table}); mend that, and run the command again")


def make_bundle(folders: Sequence[Path], path: Path, checkpoint: Checkpoint) -> Bundle:
    """Bundle the checkpoints of runs, unless the bundle there was made of the same files."""
    checkpoints = [checkpoint_file(folder, checkpoint) for folder in folders]
    files = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in checkpoints]
    made_of = [checkpoint, *files]
    record = path / _MADE_OF
    if not record.is_file() or record.read_text() != json.dumps(made_of):
        print(f"Bundling {len(folders)} networks: {path}", file=sys.stderr)  # large ones take a while
        export_bundle(folders, path, checkpoint=checkpoint)
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(made_of))
    return Bundle.load(path)


def require_out_of_fold(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse a bundle in which all networks of a kind were trained on a case.

    A split file says what a run was to hold out; the checkpoint says what it was trained on.
    """
    kinds: dict[str, list[Member]] = {}
    for member in bundle.members:
        kinds.setdefault(member.card["name"].rpartition("_fold_")[0], []).append(member)
    for (kind, members), case in product(kinds.items(), cases):
        if all(member.has_seen(case.case_id) for member in members):
            raise HnsegError(
                f"{bundle.path}: every {kind} network was trained on {case.case_id}, which the runs' "
                "split.json holds out of one; train them again with overwrite=true"
            )


def write_ablation(
    out: Path, arms: Sequence[str], data: Path, *, oracle: bool = False
) -> list[dict[str, Any]]:
    """Score every arm's masks, and write OUT/ablation.csv, .md, .tex and .json.

    Args:
        out: Holds each arm's folder.
        arms: Names of the folders; the first is the baseline.
        data: The cohort with its ground-truth masks.
        oracle: The fine ROI was placed by the ground truth.

    Returns:
        The rows of `hnseg.evaluation.tables.ablation_rows`.
    """
    rows = ablation_rows({name: evaluate(data, out / name) for name in arms})
    write_tables(rows, out)
    roi = "oracle" if oracle else "predicted"
    write_json({"arms": list(arms), "data": str(data.resolve()), "roi": roi, "rows": rows}, out / ABLATION)
    return rows
