"""Head masks: those that the head stage learns from, and those that place the coarse ROI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hnseg.cases import Case, mask_file
from hnseg.errors import HnsegError, few


def head_folder(data: Mapping[str, Any], stage: str) -> Path:
    """Where a stage finds head masks CASE.nii.gz, of the configuration's `data`.

    The head stage learns from those that were drawn or corrected alone: were predictions among them, it would
    learn from itself, and each more would deal its folds anew.
    """
    return Path(data["heads"] if stage == "head" else data["predicted_heads"] or data["heads"])


def with_head_mask(cases: Sequence[Case], heads: Path) -> list[Case]:
    """The cases that the head stage can learn from: few scans are labelled (forty in the paper).

    Args:
        cases: All cases of the cohort.
        heads: Folder of head masks CASE.nii.gz.

    Raises:
        HnsegError: Not one case has a mask.
    """
    labelled = [case for case in cases if mask_file(heads, case.case_id).exists()]
    if not labelled:
        raise HnsegError(
            f"data.heads={heads}: no head mask CASE.nii.gz for any of {len(cases)} cases; "
            "hnseg heads propose makes some"
        )
    return labelled


def require_head_masks(cases: Sequence[Case], data: Mapping[str, Any]) -> None:
    """Refuses a cohort whose coarse ROIs cannot all be placed, before any volume is prepared.

    Args:
        cases: To train and to validate on.
        data: The configuration's.

    Raises:
        HnsegError: Cases without a mask.
    """
    heads = head_folder(data, "coarse")
    if missing := [case.case_id for case in cases if not mask_file(heads, case.case_id).exists()]:
        key = "data.predicted_heads" if data["predicted_heads"] else "data.heads"
        raise HnsegError(
            f"{key}={heads}: no head mask of {few(missing)}; train the head stage (fold=all, "
            "on masks of hnseg heads propose), have it label every case (python infer.py bundle=HEADS "
            "until=head out=DIR), and set data.predicted_heads=DIR"
        )
