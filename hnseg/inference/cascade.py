"""Head → coarse → fine: one case from CT and PET to a mask on the CT's grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import SimpleITK as sitk
import torch

from hnseg.errors import HnsegError
from hnseg.geometry import Grid
from hnseg.hardware import Precision
from hnseg.images import from_array, read_label
from hnseg.inference.components import remove_faint, remove_small
from hnseg.inference.cover import cubes, outside_ml
from hnseg.inference.decision import Decision, decide
from hnseg.inference.ensemble import StageEnsemble
from hnseg.inference.networks import Networks
from hnseg.inference.way_back import blend, paste
from hnseg.models.bundle import Bundle
from hnseg.placement import place

ORDER = ("head", "coarse", "fine")


@dataclass
class Segmentation:
    """What the cascade makes of a case.

    Args:
        mask: uint8 labels on the CT's grid.
        unseen: No network that was used had been trained on the case.
        outside_ml: Coarse lesion that no cube of the fine stage held, ml; None where lesions place no cube.
        fallbacks: What was done where a stage found nothing, in words.
        seconds: Time each stage took.
        grids: Where each stage looked.
    """

    mask: sitk.Image
    unseen: bool
    outside_ml: float | None = None
    fallbacks: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    grids: dict[str, list[Grid]] = field(default_factory=dict)


class Cascade:
    """Runs the stages of a bundle one after the other.

    Args:
        bundle: The trained members. Stages it does not have are left out.
        device: Where the networks run.
        precision: Their arithmetic.
        until: The last stage to run; its labels become the mask.
        mirror: Average over mirrorings in the last stage; None follows the bundle.
        unseen: Segment each case with the members that were not trained on it.
        heads: Folder of head masks CASE.nii.gz, which stand for the head stage where there is one.

    Raises:
        HnsegError: The bundle lacks the stage asked for, or one that must place the next, or its rules or
            members do not fit together.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        precision: Precision,
        *,
        until: str = "fine",
        mirror: bool | None = None,
        unseen: bool = False,
        heads: Path | None = None,
    ) -> None:
        self.bundle, self.precision, self.unseen = bundle, precision, unseen
        classes = dict.fromkeys(name for member in bundle.members for name in member.stage.classes)
        self.decision = Decision.from_dict(bundle.decision, list(classes))
        self.names = [name for name in ORDER[: ORDER.index(until) + 1] if bundle.of_stage(name)]
        if until not in self.names:
            present = ", ".join(dict.fromkeys(member.stage.name for member in bundle.members))
            raise HnsegError(f"until={until}: {bundle.path} has no {until} member, only {present}; set until")
        placements = {bundle.of_stage(name)[0].stage.placement for name in self.names}
        self.heads = heads if "below_head" in placements else None
        self.mirror = self.decision.mirror if mirror is None else mirror
        self.networks = Networks(device)
        for name in self.names:
            _require_placing_stage(bundle, name, heads)
            self._ensemble(bundle, name)  # refuses members that do not fit together before the first case

    def __call__(self, ct: sitk.Image, pet: sitk.Image, case_id: str = "") -> Segmentation:
        """Segments one case.

        Args:
            ct: CT in HU, any orientation.
            pet: PET in SUV, on a grid of its own.
            case_id: By which members know what they were trained on, and head masks are found.

        Raises:
            HnsegError: A stage found nothing and the bundle's rules have no fallback, or the case has no head
                mask and no head stage, or a stage has no member that has not seen it.
        """
        found = self._given_head(case_id)
        drawn = found is not None
        ensembles = self._for_case(case_id, without_head=drawn)
        used = [member for ensemble in ensembles for member in ensemble.members]
        result = Segmentation(ct, unseen=not any(member.has_seen(case_id) for member in used))
        for ensemble in ensembles:
            start = perf_counter()
            stage = ensemble.stage
            grid, fallback = place(stage, ct, pet, found, fallback=self.decision.fallback, drawn=drawn)
            grids = [grid]
            if fallback:
                result.fallbacks.append(fallback)
            elif stage.placement == "lesions" and found is not None:
                if self.decision.cover == "all":
                    grids = cubes(found, grid, self.decision.floors(stage.classes))
                result.outside_ml = outside_ml(found, grids)
            result.grids[stage.name] = grids
            if ensemble is ensembles[-1]:
                result.mask = self._mask(ensemble, grids, ct, pet)
            else:
                # The recipe's rule is for the mask; what only places the next ROI is the likeliest class.
                found = grid.image(decide(ensemble.probabilities(ct, pet, grid)[1:], "argmax"))
                drawn = False
            result.seconds[stage.name] = perf_counter() - start
        return result

    def _mask(
        self, ensemble: StageEnsemble, grids: list[Grid], ct: sitk.Image, pet: sitk.Image
    ) -> sitk.Image:
        """The last stage's cubes, decided and brought to the CT's grid, in the order of the rules."""
        classes, rules = ensemble.stage.classes, self.decision
        labels = np.zeros(ct.GetSize()[::-1], np.uint8)
        maps = (ensemble.probabilities(ct, pet, grid)[1:] for grid in grids)
        if rules.way_back == "labels":
            placed = paste(grids, (rules.labels(foreground, classes) for foreground in maps), ct)
        else:
            placed = blend(grids, maps, ct)
        if placed is not None:
            decided, box = placed
            if rules.way_back == "probabilities":
                decided = rules.labels(decided, classes)
            voxel_ml = float(np.prod(ct.GetSpacing())) / 1000
            labels[box] = remove_small(decided, voxel_ml, rules.floors(classes))
        mask = from_array(labels, ct)
        if rules.node_suv_peak is not None and "GTVn" in classes:
            mask = remove_faint(mask, pet, classes.index("GTVn") + 1, rules.node_suv_peak)
        return mask

    def _for_case(self, case_id: str, *, without_head: bool) -> list[StageEnsemble]:
        """The stages that a case needs, each with the members that may segment it."""
        bundle = self.bundle.unseen(case_id) if self.unseen else self.bundle
        names = [name for name in self.names if not (without_head and name == "head")]
        for name in names:
            if not bundle.of_stage(name):
                raise HnsegError(
                    f"every {name} member was trained on it; unseen=true needs one that was not: "
                    "export more folds, or set unseen=false"
                )
        return [self._ensemble(bundle, name) for name in names]

    def _ensemble(self, bundle: Bundle, name: str) -> StageEnsemble:
        return StageEnsemble(
            bundle.of_stage(name),
            self.networks.device,
            self.precision,
            mirror=self.mirror and name == self.names[-1],
            decision=self.decision,
            networks=self.networks,
        )

    def _given_head(self, case_id: str) -> sitk.Image | None:
        path = None if self.heads is None else self.heads / f"{case_id}.nii.gz"
        if path is not None and path.exists():
            return read_label(path)
        if path is not None and "head" not in self.names:
            raise HnsegError(f"{path}: no such head mask, and the bundle has no head member; add either")
        return None


def _require_placing_stage(bundle: Bundle, name: str, heads: Path | None) -> None:
    """Refuses a bundle in which every case would have to fall back."""
    placing = {"below_head": "head", "lesions": "coarse"}.get(bundle.of_stage(name)[0].stage.placement)
    given = placing == "head" and heads is not None
    if placing and not given and not bundle.of_stage(placing):
        raise HnsegError(
            f"{bundle.path} has no {placing} member to place the {name} ROI by; export a {placing} run too"
        )
