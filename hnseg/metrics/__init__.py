"""The official scores on arrays, and the same as a torchmetrics metric.

The metrics are loaded on first use: scoring files takes no torch, whose import takes longer than that.
"""

from typing import TYPE_CHECKING, Any

from hnseg.metrics.lesions import (
    CONNECTIVITIES,
    MATCHINGS,
    Connectivity,
    Detections,
    Matching,
    Overlaps,
    label_lesions,
    match,
    overlapping_lesions,
)
from hnseg.metrics.official import (
    CLASSES,
    EMPTY_POLICIES,
    GTVN,
    GTVP,
    CaseCounts,
    EmptyPolicy,
    Overlap,
    Scores,
    aggregate,
    case_score_2026,
    count_case,
    f1_agg,
)
from hnseg.metrics.surface import SurfaceDistance, surface_distance

if TYPE_CHECKING:
    from hnseg.metrics.torch_metrics import CaseMeans, OfficialScores

__all__ = [
    "CLASSES",
    "CONNECTIVITIES",
    "EMPTY_POLICIES",
    "GTVN",
    "GTVP",
    "MATCHINGS",
    "CaseCounts",
    "CaseMeans",
    "Connectivity",
    "Detections",
    "EmptyPolicy",
    "Matching",
    "OfficialScores",
    "Overlap",
    "Overlaps",
    "Scores",
    "SurfaceDistance",
    "aggregate",
    "case_score_2026",
    "count_case",
    "f1_agg",
    "label_lesions",
    "match",
    "overlapping_lesions",
    "surface_distance",
]


def __getattr__(name: str) -> Any:
    if name == "OfficialScores":
        from hnseg.metrics.torch_metrics import OfficialScores

        return OfficialScores
    if name == "CaseMeans":
        from hnseg.metrics.torch_metrics import CaseMeans

        return CaseMeans
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
