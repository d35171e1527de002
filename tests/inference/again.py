"""Case lists run in this process, as often as a test asks."""

from pathlib import Path
from typing import Any

from hnseg.imaging.case import read_cases
from hnseg.inference.cascade import Cascade
from hnseg.inference.predict_cases import Options, predict_cases
from hnseg.inference.records import Outcome

NAMES = ("A", "B", "C")  # of the fixture `scans`
# SUV above 4 is a node: masks that the fixture `bundle`, for which it is a tumour, never makes.
NODE = {"weights": [[0.0, 0.0], [0.0, 0.0], [0.0, 400.0]], "biases": [0.0, -500.0, -80.0]}


def outcomes(source: Path, stages: Cascade, out: Path, **options: Any) -> dict[str, Outcome]:
    found = predict_cases(read_cases(source, strict=False), [{out: stages}], Options(**options))
    return {outcome.case_id: outcome for outcome in sorted(found, key=lambda one: one.case_id)}


def statuses(source: Path, stages: Cascade, out: Path, **options: Any) -> dict[str, str]:
    return {name: outcome.status for name, outcome in outcomes(source, stages, out, **options).items()}
