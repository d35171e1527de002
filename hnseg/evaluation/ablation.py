"""A sweep's runs → every arm's masks of every patient, out of fold, and the table that compares the arms."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hnseg.app import compose_job
from hnseg.data.splits import Folds, read_split_file
from hnseg.devices import pick_devices
from hnseg.errors import HnsegError, few
from hnseg.evaluation.score import evaluate
from hnseg.evaluation.tables import ABLATION, ablation_rows, write_tables
from hnseg.files import replacing, write_json
from hnseg.imaging.case import Case
from hnseg.inference.arms import Arms, segment_arms
from hnseg.inference.ensemble import Memory
from hnseg.inference.options import check_options
from hnseg.inference.setup import Setup
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import Checkpoint, checkpoint_file
from hnseg.training.runs import Run, find_runs, read_config

SPLIT = "split.json"
_AGAIN = "python train.py sweeps=ablation data.root=PATH -m trains what is missing"


@dataclass(frozen=True)
class Kind:
    """Networks that stand for one another but for the fold they were not trained on.

    Args:
        stage: Of the cascade.
        model: Their name; None takes whichever the stage has.
        cte: Whether they see enhanced CT; None as above.
    """

    stage: str
    model: str | None = None
    cte: bool | None = None

    def __str__(self) -> str:
        enhanced = {None: "", True: "with enhancement", False: "without enhancement"}[self.cte]
        return " ".join(filter(None, (self.stage, self.model, enhanced)))

    def has(self, run: Run, config: Mapping[str, Any]) -> bool:
        """Whether a run trains such a network."""
        return (
            run.stage == self.stage
            and self.model in (None, run.model)
            and self.cte in (None, bool(config["cte"]))
        )


@dataclass(frozen=True)
class Sources:
    """The runs of all arms, one a kind and fold, and the folds they share.

    Args:
        folders: Of the runs.
        folds: Case ids that fold k holds out.
        project: The runs' W&B project.
    """

    folders: list[Path]
    folds: Folds
    project: str

    def in_order(self, cases: Sequence[Case]) -> list[Case]:
        """The cases fold by fold, so that the networks of one fold stay loaded."""
        number = _numbers(self.folds)
        return sorted(cases, key=lambda case: (number[case.case_id], case.case_id))


def find_sources(root: Path, cases: Sequence[Case], kinds: Sequence[Kind]) -> Sources:
    """The finished runs of all kinds, every fold of each.

    Args:
        root: A folder of runs, as a sweep leaves it.
        cases: The cohort.
        kinds: Those wanted; the folds of the last hold for all.

    Raises:
        HnsegError: Runs are missing, unfinished or of several arms where one is wanted; they were dealt
            other folds; or the cohort is not the one they were trained on.
    """
    found = [(run, read_config(run.path)) for run in find_runs(root) if run.fold.isdigit()]
    runs = {kind: _of_kind(root, kind, found) for kind in kinds}
    reference = next(iter(runs[kinds[-1]].values())).path / SPLIT
    folds = _read(reference)
    for kind, by_fold in runs.items():
        _require_all(root, kind, by_fold, len(folds))
        for run in by_fold.values():
            _require_same(run.path / SPLIT, kind, reference, folds)
    _require_cohort(cases, folds, root)
    folders = [run.path for by_fold in runs.values() for run in by_fold.values()]
    logger = read_config(folders[0]).get("logger", {})
    return Sources(folders, folds, logger.get("project", "hnseg"))


def _of_kind(root: Path, kind: Kind, found: Sequence[tuple[Run, Mapping[str, Any]]]) -> dict[int, Run]:
    """The runs of a kind by fold."""
    here = [run for run, config in found if kind.has(run, config)]
    arms = list(dict.fromkeys(run.path.parent for run in here))
    if not arms:
        raise HnsegError(f"{root}: no run of {kind} in folds; {_AGAIN}")
    if len(arms) > 1:
        raise HnsegError(
            f"{root}: several trainings of {kind} ({', '.join(map(str, arms))}); give a folder with one"
        )
    if unfinished := [str(run.path) for run in here if run.state != "finished"]:
        raise HnsegError(f"not finished: {', '.join(unfinished)}; run the same training command again")
    return {int(run.fold): run for run in here}


def _require_all(root: Path, kind: Kind, by_fold: Mapping[int, Run], count: int) -> None:
    if missing := [str(fold) for fold in range(count) if fold not in by_fold]:
        raise HnsegError(f"{root}: no run of {kind} for fold {', '.join(missing)} of {count}; {_AGAIN}")


def _require_same(path: Path, kind: Kind, reference: Path, folds: Folds) -> None:
    """Refuses folds that are not the reference's; head masks may be known of some cases alone."""
    ours, theirs = _numbers(_read(path)), _numbers(folds)
    listed = ours if kind.stage == "head" else ours | theirs
    for case_id in listed:
        if ours.get(case_id) != theirs.get(case_id):
            raise HnsegError(
                f"{path}: deals {case_id} to fold {ours.get(case_id, 'none')}, {reference} to fold "
                f"{theirs.get(case_id, 'none')}; train both with data.split={reference}"
            )


def _require_cohort(cases: Sequence[Case], folds: Folds, root: Path) -> None:
    here, listed = {case.case_id for case in cases}, {case_id for fold in folds for case_id in fold}
    if absent := sorted(listed - here):
        raise HnsegError(
            f"--data lacks {few(absent)}, known to the runs of {root}; give the cohort they were trained on"
        )
    if unlisted := sorted(here - listed):
        raise HnsegError(
            f"--data has {few(unlisted)}, which no fold of {root} holds out; take them out, or train again"
        )
    if unlabelled := [case.case_id for case in cases if case.label is None]:
        raise HnsegError(
            f"--data has no true mask of {few(unlabelled)}; add CASE/CASE.nii.gz, or a CSV's label"
        )


def _read(path: Path) -> Folds:
    return read_split_file(path).folds


def _numbers(folds: Folds) -> dict[str, int]:
    """Fold by case."""
    return {case_id: number for number, fold in enumerate(folds) for case_id in fold}


Config = dict[str, Any]

ORACLE = "_oracle_roi"  # ends the names of arms that no patient's scan can be segmented by
# What an ablation decides itself.
_OURS = ("cases", "bundle", "out", "format", "overwrite", "until", "unseen", "heads", "ensemble", "engine")


def read_arms(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    baseline: str | None = None,
    oracle: bool = False,
) -> dict[str, Config]:
    """What each arm is run with, as infer.py's configuration, by the name of its folder.

    Args:
        names: Of conf/ensemble.
        overrides: As for infer.py.
        baseline: The arm that the others are compared with, by default the first. It comes first, and it
            alone has probability maps unless the overrides say otherwise: the report draws its cases.
        oracle: The arms' names tell that their fine ROI is placed by the true lesions.

    Raises:
        HnsegError: No arm, an unknown one or one without members, or overrides that do not fit.
    """
    names = list(dict.fromkeys(filter(None, map(str.strip, names))))
    if not names:
        raise HnsegError("--arms: names no arm; name some of conf/ensemble")
    first = names[0] if baseline is None else baseline
    if first not in names:
        raise HnsegError(f"--baseline {first}: not among the arms; choose from {', '.join(names)}")
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in _OURS:
            raise HnsegError(f"{text}: hnseg ablation sets {key} itself; leave it out")
    names.sort(key=lambda name: name != first)
    return {name + ORACLE * oracle: _read_arm(name, overrides, mapped=name == first) for name in names}


def _read_arm(name: str, overrides: Sequence[str], *, mapped: bool) -> Config:
    given = [f"ensemble={name}", f"probabilities={str(mapped).lower()}", *overrides]
    config: Config = OmegaConf.to_container(compose_job(given, "infer"), resolve=True)  # type: ignore[assignment]
    check_options(config)
    if config["ensemble"]["members"] is None:
        raise HnsegError(f"--arms {name}: takes whatever members there are; name arms that say theirs")
    return config | {"unseen": True}


def kinds_of(arms: Mapping[str, Config], *, oracle: bool) -> list[Kind]:
    """The networks that the arms need, the last stage's at the end; an oracle places without the others."""
    placing = [] if oracle else [Kind("head"), Kind("coarse")]
    members = [member for config in arms.values() for member in config["ensemble"]["members"]]
    fine = [Kind("fine", member["model"], bool(member["cte"])) for member in members]
    return [*placing, *dict.fromkeys(fine)]


BUNDLE = "bundle"  # OUT/bundle
_MADE_OF = "made_of.json"  # in it: the checkpoints it was exported from


def predict(
    arms: Mapping[str, Config],
    sources: Sources,
    cases: Sequence[Case],
    out: Path,
    *,
    oracle: bool = False,
    checkpoint: Checkpoint = "best",
) -> None:
    """Segments every case with every arm, into OUT/ARM; what an earlier call finished is skipped.

    Args:
        arms: As `read_arms` gives them.
        sources: The runs they are made of.
        cases: The cohort.
        out: The ablation's folder.
        oracle: The true lesions place the fine ROI, instead of head and coarse networks.
        checkpoint: Which of the runs' weights; the cases had a say in which are the best.

    Raises:
        HnsegError: A run cannot be exported, a case was trained on by every network of a kind, or cases could
            not be segmented.
    """
    bundle = make_bundle(sources.folders, out / BUNDLE, checkpoint)
    require_unseen(bundle, cases)
    options: dict[str, Any] = {"lesions": {case.case_id: case.label for case in cases}} if oracle else {}
    setups = {
        name: Setup.from_config(config | {"bundle": bundle.path, "heads": None})
        for name, config in arms.items()
    }
    first, device = next(iter(setups.values())), next(iter(arms.values()))["trainer"]["device"]
    devices = []
    for one in pick_devices(device):
        networks, memory = first.networks(one), Memory()
        shared = {"networks": networks, "memory": memory, **options}
        devices.append(Arms({name: setup.make(bundle, **shared) for name, setup in setups.items()}, memory))
    outcomes = segment_arms(sources.in_order(cases), devices, out)
    failed = [(name, one.case_id) for name, ones in outcomes.items() for one in ones if one.status == "error"]
    if failed:
        table = out / failed[0][0] / "cases.csv"
        ids = ", ".join(dict.fromkeys(case_id for _, case_id in failed))
        raise HnsegError(f"not segmented: {ids} (reasons in {table}); mend that, and run the command again")


def make_bundle(folders: Sequence[Path], path: Path, checkpoint: Checkpoint) -> Bundle:
    """Checkpoints of runs as a bundle; one that was made of the same files is kept.

    Raises:
        HnsegError: As `export_bundle`.
    """
    checkpoints = [checkpoint_file(folder, checkpoint) for folder in folders]
    files = [[str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns] for one in checkpoints]
    made_of = [checkpoint, *files]
    record = path / _MADE_OF
    if _read_cases(record) != made_of:
        print(f"Bundling {len(folders)} networks: {path}", file=sys.stderr)  # large ones take a while
        export_bundle(folders, path, checkpoint=checkpoint)
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(made_of))
    return Bundle.load(path)


def _read_cases(record: Path) -> Any:
    """What a bundle was made of; None where nothing tells, so that it is made anew."""
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):
        return None


def require_unseen(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuses a bundle in which all networks of a kind were trained on a case.

    A split file says what a run was to hold out; the checkpoint says what it was trained on.
    """
    kinds: dict[str, list[Any]] = {}
    for member in bundle.members:
        kinds.setdefault(member.card["name"].rpartition("_fold_")[0], []).append(member)
    for kind, members in kinds.items():
        for case in cases:
            if all(member.has_seen(case.case_id) for member in members):
                raise HnsegError(
                    f"{bundle.path}: every {kind} network was trained on {case.case_id}, which the runs' "
                    "split.json holds out of one; train them again with overwrite=true"
                )


def write_ablation(
    out: Path, arms: Sequence[str], data: Path, *, oracle: bool = False
) -> list[dict[str, Any]]:
    """Scores every arm's masks, and writes OUT/ablation.csv, .md, .tex and .json.

    Args:
        out: Holds each arm's folder.
        arms: Names of the folders; the first is the baseline.
        data: The cohort with its true masks.
        oracle: The true lesions placed the fine ROI.

    Returns:
        The rows, as `hnseg.evaluation.ablation_rows` describes them.

    Raises:
        HnsegError: Masks are missing, or a file cannot be written.
    """
    rows = ablation_rows({name: evaluate(data, out / name) for name in arms})
    write_tables(rows, out)
    content = {
        "arms": list(arms),
        "data": str(data.resolve()),
        "roi": "oracle" if oracle else "predicted",
        "rows": rows,
    }
    write_json(content, out / ABLATION)
    return rows
