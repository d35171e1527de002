"""Case lists run in this process, as often as a test asks."""

from pathlib import Path
from typing import Any

import torch

from hnseg.imaging.case import read_cases
from hnseg.inference.cascade import Cascade
from hnseg.inference.case_list import segment_cases
from hnseg.inference.local_engine import LocalEngine
from hnseg.models.bundle import Bundle

NAMES = ("A", "B", "C")  # of the fixture `scans`
# SUV above 4 is a node: masks that the fixture `bundle`, for which it is a tumour, never makes.
NODE = {"weights": [[0.0, 0.0], [0.0, 0.0], [0.0, 400.0]], "biases": [0.0, -500.0, -80.0]}


def cascade(bundle: Bundle, **settings: Any) -> Cascade:
    return Cascade(bundle, torch.device("cpu"), "float32", **settings)


def statuses(source: Path, stages: Cascade, out: Path, **settings: Any) -> dict[str, str]:
    outcomes = segment_cases(read_cases(source, strict=False), LocalEngine([stages]), out, **settings)
    return {outcome.case_id: outcome.status for outcome in outcomes}
