"""Which cases a job trains on, how they are dealt into folds, and what places their ROIs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hnseg.app import HOME
from hnseg.config import Data, Job
from hnseg.data.splits import CENTRES, Split
from hnseg.errors import HnsegError, few
from hnseg.files import read_table
from hnseg.imaging.case import Case, find_orphans, mask_file, read_cases


def head_folder(data: Data, stage: str) -> Path:
    """Where a stage finds head masks CASE.nii.gz, of the configuration's `data`.

    The localiser learns from those that were drawn or corrected alone: were predictions among them, it would
    learn from itself, and each more would deal its folds anew.
    """
    return data.head_labels if stage == "localiser" else data.head_masks or data.head_labels


def with_head_mask(cases: Sequence[Case], heads: Path) -> list[Case]:
    """The cases that the localiser can learn from: few scans are labelled (forty in the paper)."""
    labelled = [case for case in cases if mask_file(heads, case.case_id).exists()]
    if not labelled:
        raise HnsegError(
            f"data.head_labels={heads}: no head mask CASE.nii.gz for any of {len(cases)} cases; "
            "hnseg propose-heads makes some"
        )
    return labelled


def require_head_masks(cases: Sequence[Case], data: Data) -> None:
    """Refuses a cohort whose coarse ROIs cannot all be placed, before any volume is prepared."""
    heads = head_folder(data, "coarse")
    if missing := [case.case_id for case in cases if not mask_file(heads, case.case_id).exists()]:
        key = "data.head_masks" if data.head_masks else "data.head_labels"
        raise HnsegError(
            f"{key}={heads}: no head mask of {few(missing)}; train the localiser (fold=all, "
            "on masks of hnseg propose-heads), have it label every case (hnseg infer bundle=HEADS "
            "last_stage=localiser out=DIR), and set data.head_masks=DIR"
        )


_COMMAND = "hnseg infer last_stage=coarse out_of_fold=true"  # what makes coarse predictions to train on


@dataclass(frozen=True)
class Fold:
    """What a job trains and validates on."""

    train: list[Case]
    validation: list[Case]
    split: Split
    coarse: Path | None  # folder of coarse predictions that place the fine ROI


def find_fold(job: Job) -> Fold:
    """The cases of a job, and what places its ROIs."""
    cases, split = read_cohort(job.data, job.stage.name)
    train, validation = split.assign(cases, job.fold)
    # With fold=all they are the same.
    both, coarse = list({case.case_id: case for case in [*train, *validation]}.values()), None
    if job.stage.placement == "below_head":
        require_head_masks(both, job.data)
    elif job.stage.placement == "lesions":
        coarse = find_coarse(job.data.coarse, both, train_roi=job.recipe.roi.train)
    return Fold(train, validation, split, coarse)


def read_cohort(data: Data, stage: str) -> tuple[list[Case], Split]:
    """The cases of the configuration, and how they are dealt into folds."""
    if data.root is None:
        raise HnsegError(
            "data.root names the folder with the PET/CT cases and is not set: add data.root=PATH, or set "
            "HNSEG_DATA in the environment; without data, `make demo` makes a synthetic cohort"
        )
    found = read_cases(data.root)
    if data.root.is_dir() and (ignored := find_orphans(data.root)):
        print(f"data.root={data.root}: {len(found)} cases; of no case: {few(ignored)}", file=sys.stderr)
    if unknown := sorted(set(data.exclude) - {case.case_id for case in found}):
        raise HnsegError(f"data.exclude={','.join(unknown)}: no such case in {data.root}; check the names")
    cohort = [case for case in found if case.case_id not in data.exclude]
    cases = with_head_mask(cohort, data.head_labels) if stage == "localiser" else cohort
    if not data.split:
        return cases, Split.make(cases, data.folds, data.split_seed)
    if data.split == CENTRES:
        return cases, Split.leave_one_center_out(cohort).only(cases)
    path = Path(data.split)  # relative to the working directory or to the repository
    path = path if path.exists() else HOME / path
    return cases, Split.read(path, cohort, list(data.exclude)).only(cases)


def find_coarse(folder: Path | None, cases: Sequence[Case], *, train_roi: str) -> Path | None:
    """The folder of coarse predictions that place the fine ROI, or None where there is none.

    Raises:
        HnsegError: The recipe trains on predicted ROIs and there are none, cases lack a prediction, or
            cases.csv does not say of each that its networks had not been trained on it.
    """
    if folder is None:
        if train_roi == "coarse":
            raise HnsegError(
                "recipe.roi.train=coarse needs coarse predictions and data.coarse is not set; make them "
                f"with {_COMMAND} out=COARSE"
            )
        return None
    if not folder.is_dir():
        raise HnsegError(
            f"data.coarse={folder}: no such folder; give what hnseg infer last_stage=coarse wrote"
        )
    table, names = folder / "cases.csv", sorted(case.case_id for case in cases)
    _, rows = read_table(table, f"make it and the masks anew with {_COMMAND}", ("case_id",))
    out_of_fold = {row["case_id"]: row.get("out_of_fold") == "yes" for row in rows}
    if missing := [name for name in names if not mask_file(folder, name).exists()]:
        raise HnsegError(
            f"data.coarse={folder}: no prediction of {', '.join(missing)}; make them, or exclude them"
        )
    if unlisted := [name for name in names if name not in out_of_fold]:
        raise HnsegError(
            f"{table} does not list {', '.join(unlisted)}, so that nothing says which networks made their "
            f"masks; make them anew with {_COMMAND}"
        )
    if leaked := [name for name in names if not out_of_fold[name]]:
        raise HnsegError(
            f"data.coarse={folder}: made by networks trained on {', '.join(leaked)}; make them anew with "
            f"{_COMMAND}"
        )
    return folder
