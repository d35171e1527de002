"""Which cases a job trains on, and how they are dealt into folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnseg.cases import Case
from hnseg.data.splits import CENTRES, Split
from hnseg.head_masks import with_head_mask
from hnseg.hydra_app import REPOSITORY
from hnseg.preflight import find_cohort


def read_cohort(data: dict[str, Any], stage: str) -> tuple[list[Case], Split]:
    """The cases of the configuration, and how they are dealt into folds."""
    cohort = find_cohort(data["root"], data["exclude"])
    cases = with_head_mask(cohort, Path(data["heads"])) if stage == "head" else cohort
    if not data["split"]:
        return cases, Split.make(cases, data["folds"], data["split_seed"])
    if data["split"] == CENTRES:
        return cases, Split.leave_one_center_out(cohort).only(cases)
    here = Path(data["split"])  # relative to the working directory or to the repository
    here = here if here.exists() else REPOSITORY / here
    return cases, Split.read(here, cohort).only(cases)
