"""What the cascade makes of a case."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.geometry import Grid
from hnseg.images import from_array
from hnseg.inference.decision import Decision
from hnseg.inference.lesions import Lesion
from hnseg.inference.way_back import Box


@dataclass
class Segmentation:
    """What the cascade makes of a case.

    Args:
        mask: uint8 labels on the CT's grid.
        unseen: No network that was used had been trained on the case.
        decision: The rules by which the mask was decided.
        outside_ml: Coarse lesion that no cube of the fine stage held, ml; None where lesions place no cube.
        fallbacks: What was done where a stage found nothing, and what of the ROI the scan does not show.
        seconds: Time each step took: `resample` (ROIs placed and cut out), `wait` for networks that another
            case has, each stage's networks, `back` (to the CT's grid, decided and measured).
        grids: Where each stage looked.
        lesions: What the mask holds; none where it holds heads.
        look_first: Why a reader should look at the case before others, in words; else empty.
        maps: Those that were asked for, float32 (z, y, x) in `box`: `probability_CLASS`, `entropy` and
            `mutual_information`.
        box: The part (z, y, x) of the CT that the last stage's ROI reaches; None where they do not meet.
    """

    mask: sitk.Image
    unseen: bool
    decision: Decision
    outside_ml: float | None = None
    fallbacks: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    grids: dict[str, list[Grid]] = field(default_factory=dict)
    lesions: list[Lesion] = field(default_factory=list)
    look_first: str = ""
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    box: Box | None = None

    @property
    def roi(self) -> str:
        """The grid of the last stage as JSON; empty where it looked at several cubes."""
        last = list(self.grids.values())[-1] if self.grids else []
        return json.dumps(last[0].to_dict()) if len(last) == 1 else ""

    @property
    def rules(self) -> str:
        """The rules as JSON."""
        return json.dumps(asdict(self.decision))

    def volumes(self) -> Iterator[tuple[str, sitk.Image]]:
        """The maps by name, one at a time on the CT's grid, float32 and zero outside the ROI."""
        for name, values in self.maps.items():
            whole = np.zeros(self.mask.GetSize()[::-1], np.float32)
            whole[self.box] = values
            yield name, from_array(whole, self.mask)
