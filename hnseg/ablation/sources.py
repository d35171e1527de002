"""The runs that the arms are made of: found, and refused where they would not make a fair comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnseg.cases import Case
from hnseg.data.split_files import Folds, read_split_file
from hnseg.errors import HnsegError, few
from hnseg.runs import Run, find_runs, read_config

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
    return read_split_file(path, ()).folds


def _numbers(folds: Folds) -> dict[str, int]:
    """Fold by case."""
    return {case_id: number for number, fold in enumerate(folds) for case_id in fold}
