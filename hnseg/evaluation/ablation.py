"""A sweep's runs → every arm's masks of every patient, out of fold, and the table that compares the arms.

An arm is the fine members that conf/arms/ARM.yaml names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from hnseg.app import compose
from hnseg.config import Inference, read_inference
from hnseg.devices import pick_devices
from hnseg.errors import HnsegError
from hnseg.evaluation.score import evaluate
from hnseg.evaluation.tables import ABLATION, ablation_rows, write_tables
from hnseg.files import write_json
from hnseg.imaging.case import Case
from hnseg.inference.cascade import Cascade, networks_for
from hnseg.inference.predict_cases import predict_cases
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import Checkpoint, Member, checkpoint_file
from hnseg.training.runs import Run, find_runs

ORACLE = "_oracle_roi"  # ends the names of arms that need the ground truth
_AGAIN = "hnseg train sweeps=ablation data.root=PATH -m trains what is missing"


def read_arms(
    names: Sequence[str], overrides: Sequence[str] = (), *, oracle: bool = False
) -> dict[str, Inference]:
    """The call of hnseg infer that each arm stands for, by the name of the arm's folder.

    Args:
        names: Of conf/arms. The others are compared with the first, and only the first has probability maps
            unless the overrides say otherwise: the report draws its cases.
        overrides: As for hnseg infer.
        oracle: Whether the ground truth places the fine ROI; the arms' names say so.

    Raises:
        HnsegError: An unknown arm or one without members, or overrides that do not fit.
    """
    calls = {}
    for number, name in enumerate(dict.fromkeys(names)):
        maps = f"probabilities={str(number == 0).lower()}"
        ours = [f"arms={name}", "out_of_fold=true", "cases=unused", "bundle=unused", "out=unused"]
        call = read_inference(compose([maps, *overrides, *ours], "infer"))
        if call.arms.members is None:
            raise HnsegError(f"--arms {name}: takes whatever members there are; name arms that say theirs")
        calls[name + ORACLE * oracle] = call
    return calls


class NetworkKind(NamedTuple):
    """Networks that differ only in their fold; any model, with or without enhancement, where it is None."""

    stage: str
    model: str | None = None
    cte: bool | None = None

    def __str__(self) -> str:
        enhanced = {None: "", True: "with enhancement", False: "without enhancement"}[self.cte]
        return " ".join(filter(None, (self.stage, self.model, enhanced)))


def find_sources(root: Path, arms: Mapping[str, Inference], *, oracle: bool = False) -> list[Run]:
    """The runs of one fold each that the arms need: of localiser, coarse and fine networks.

    Args:
        root: A folder of runs, as a sweep leaves it.
        arms: As `read_arms` gives them.
        oracle: The ground truth places the fine ROI, and no localiser or coarse network is needed.

    Raises:
        HnsegError: No run of a kind of network, or several trainings of it.
    """
    members = [member for call in arms.values() for member in call.arms.members or ()]
    kinds = [] if oracle else [NetworkKind("localiser"), NetworkKind("coarse")]
    kinds += dict.fromkeys(NetworkKind("fine", member.model, member.cte) for member in members)
    of_folds = [run for run in find_runs(root) if run.fold.isdigit()]
    sources: list[Run] = []
    for kind in kinds:
        found = [
            run
            for run in of_folds
            if run.stage == kind.stage and kind.model in (None, run.model) and kind.cte in (None, run.cte)
        ]
        trainings = sorted({str(run.path.parent) for run in found})
        if not found:
            raise HnsegError(f"{root}: no run of {kind} in folds; {_AGAIN}")
        if len(trainings) > 1:
            raise HnsegError(
                f"{root}: several trainings of {kind} ({', '.join(trainings)}); give a folder with one"
            )
        sources += found
    return sources


def predict(
    arms: Mapping[str, Inference],
    sources: Sequence[Run],
    cases: Sequence[Case],
    out: Path,
    *,
    oracle: bool = False,
    checkpoint: Checkpoint = "best",
) -> None:
    """Segment every case with every arm, into OUT/ARM; what an earlier call finished is skipped.

    Args:
        arms: As `read_arms` gives them.
        sources: As `find_sources` gives them.
        cases: The cohort.
        out: The ablation's folder.
        oracle: The ground truth places the fine ROI, instead of localiser and coarse networks.
        checkpoint: Which of the runs' weights; these cases took part in choosing the best.

    Raises:
        HnsegError: Cases could not be segmented.
    """
    bundle = make_bundle([run.path for run in sources], out / "bundle", checkpoint)
    require_out_of_fold(bundle, cases)
    lesions = {case.case_id: case.label for case in cases if case.label} if oracle else None
    first, devices = next(iter(arms.values())), []
    for device in pick_devices(first.trainer.device):
        networks = networks_for(first, device)  # the arms share them: each runs once a case
        devices.append({out / name: Cascade.of(arms[name], bundle, networks, lesions) for name in arms})
    # Fold by fold, so that the networks of one fold stay loaded.
    in_order = sorted(cases, key=lambda case: [member.has_seen(case.case_id) for member in bundle.members])
    outcomes = predict_cases(in_order, devices)
    if failed := [outcome for outcome in outcomes if outcome.status == "error"]:
        ids = ", ".join(dict.fromkeys(outcome.case_id for outcome in failed))
        table = failed[0].out / "cases.csv"
        raise HnsegError(f"not segmented: {ids} (reasons in {table}); mend that, and run the command again")


def make_bundle(folders: Sequence[Path], path: Path, checkpoint: Checkpoint) -> Bundle:
    """Bundle the checkpoints of runs, unless the bundle there has the same files in it."""
    files = [checkpoint_file(folder, checkpoint) for folder in folders]
    found = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    sources, listing = [checkpoint, *found], path / "checkpoints.json"
    if not listing.is_file() or json.loads(listing.read_text()) != sources:
        print(f"Bundling {len(folders)} networks: {path}", file=sys.stderr)  # large ones take a while
        export_bundle(folders, path, checkpoint=checkpoint)
        write_json(sources, listing)
    return Bundle.load(path)


def require_out_of_fold(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse cases on which all networks of a kind were trained (as their checkpoints say), or no fine one.

    The latter are not of the runs' cohort, or are other names of what is.
    """
    kinds: dict[str, list[Member]] = {}
    for member in bundle.members:
        kinds.setdefault(member.card.name.rpartition("_fold_")[0], []).append(member)
    for case_id, (kind, members) in product((case.case_id for case in cases), kinds.items()):
        if all(member.has_seen(case_id) for member in members):
            raise HnsegError(f"{bundle.path}: every {kind} network was trained on {case_id}; {_AGAIN}")
    for case in cases:
        if not any(member.has_seen(case.case_id) for member in bundle.of_stage("fine")):
            raise HnsegError(
                f"--data has {case.case_id}, on which no fine network was trained; give the cohort of the "
                "runs, with the names that it had there"
            )


def write_ablation(out: Path, arms: Sequence[str], data: Path) -> list[dict[str, Any]]:
    """Score the masks in OUT/ARM, write OUT/ablation.csv, .md, .tex and .json, and return `ablation_rows`."""
    rows = ablation_rows({name: evaluate(data, out / name) for name in arms})
    write_tables(rows, out)
    write_json({"arms": list(arms), "data": str(data.resolve()), "rows": rows}, out / ABLATION)
    return rows
