"""Head → coarse → fine: one case from CT and PET to a mask on the CT's grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import SimpleITK as sitk
import torch

from hnseg.data.resample import to_image
from hnseg.errors import HnsegError
from hnseg.geometry import Grid
from hnseg.hardware import Precision
from hnseg.images import from_array
from hnseg.inference.decision import decide, remove_small
from hnseg.inference.ensemble import StageEnsemble
from hnseg.models.bundle import Bundle
from hnseg.placement import place

ORDER = ("head", "coarse", "fine")


@dataclass
class Segmentation:
    """What the cascade makes of a case.

    Args:
        mask: uint8 labels on the CT's grid.
        fallbacks: What was done where a stage found nothing, in words.
        seconds: Time each stage took.
        grids: Where each stage looked.
    """

    mask: sitk.Image
    fallbacks: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)


class Cascade:
    """Runs the stages of a bundle one after the other; nothing found is never a crash.

    Args:
        bundle: The trained members. Stages it does not have are left out.
        device: Where the networks run.
        precision: Their arithmetic.
        until: The last stage to run; its labels become the mask.
        mirror: Average over mirrorings in the last stage; None follows the bundle.

    Raises:
        HnsegError: The bundle lacks the stage asked for, or one that must place the next.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        precision: Precision,
        *,
        until: str = "fine",
        mirror: bool | None = None,
    ) -> None:
        self.decision = bundle.decision
        wanted = [name for name in ORDER[: ORDER.index(until) + 1] if bundle.of_stage(name)]
        if until not in wanted:
            present = ", ".join(dict.fromkeys(member.stage.name for member in bundle.members))
            raise HnsegError(f"until={until}: {bundle.path} has no {until} member, only {present}; set until")
        mirrored = self.decision["mirror"] if mirror is None else mirror
        for name in wanted:
            _require_placing_stage(bundle, name)
        self.stages = [
            StageEnsemble(bundle.of_stage(name), device, precision, mirror=mirrored and name == until)
            for name in wanted
        ]

    def __call__(self, ct: sitk.Image, pet: sitk.Image) -> Segmentation:
        """Segments one case.

        Args:
            ct: CT in HU, any orientation.
            pet: PET in SUV, on a grid of its own.
        """
        result = Segmentation(ct)
        found: sitk.Image | None = None
        for ensemble in self.stages:
            start = perf_counter()
            stage = ensemble.stage
            grid, fallback = place(stage, ct, pet, found)
            if fallback:
                result.fallbacks.append(fallback)
            foreground = ensemble.probabilities(ct, pet, grid)[1:]
            result.grids[stage.name] = grid
            if ensemble is self.stages[-1]:
                result.mask = self._mask(foreground, grid, ct)
            else:
                # The recipe's rule is for the mask; what only places the next ROI is the likeliest class.
                found = grid.image(decide(foreground, "argmax"))
            result.seconds[stage.name] = perf_counter() - start
        return result

    def _mask(self, foreground: np.ndarray, grid: Grid, ct: sitk.Image) -> sitk.Image:
        """Probabilities are brought to the CT's grid, and decided there."""
        labels = np.zeros(ct.GetSize()[::-1], np.uint8)
        placed = to_image(foreground, grid, ct)
        if placed is not None:
            maps, box = placed
            voxel_ml = float(np.prod(ct.GetSpacing())) / 1000
            decided = decide(maps, self.decision["rule"])
            labels[box] = remove_small(decided, voxel_ml, self.decision["min_component_ml"])
        return from_array(labels, ct)


def _require_placing_stage(bundle: Bundle, name: str) -> None:
    """Refuses a bundle in which every case would have to fall back."""
    placing = {"below_head": "head", "lesions": "coarse"}.get(bundle.of_stage(name)[0].stage.placement)
    if placing and not bundle.of_stage(placing):
        raise HnsegError(
            f"{bundle.path} has no {placing} member to place the {name} ROI by; export a {placing} run too"
        )
