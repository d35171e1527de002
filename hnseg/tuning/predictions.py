"""Which predictions may be tuned on: out-of-fold masks of this bundle's rules, nothing dropped from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hnseg.cases import Case, read_cases
from hnseg.errors import HnsegError, few
from hnseg.evaluation.score import find_masks
from hnseg.inference.decision import Decision
from hnseg.inference.record import TABLE
from hnseg.models.bundle import Bundle
from hnseg.tables import read_table

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
