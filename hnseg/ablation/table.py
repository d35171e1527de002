"""Masks of several arms → scores and comparisons, in files and on W&B."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnseg.evaluation.ablation_rows import ablation_rows
from hnseg.evaluation.ablation_table import write_tables
from hnseg.evaluation.score import evaluate
from hnseg.files import replacing

TABLE = "ablation.json"


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
    with replacing(out / TABLE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return rows
