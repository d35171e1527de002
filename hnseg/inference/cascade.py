"""Head → coarse → fine: one case from CT and PET to a mask on the CT's grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from hnseg.card import Decision, Stage, plain
from hnseg.config import Inference
from hnseg.data.resample import index_box, to_image
from hnseg.errors import HnsegError
from hnseg.imaging.case import mask_file
from hnseg.imaging.grid import Grid, Point, bounds
from hnseg.imaging.images import digest_voxels, from_array, read_label
from hnseg.imaging.masks import Box, voxel_ml
from hnseg.imaging.placement import Fallback, cuts, place, without_pet
from hnseg.inference.backends import Networks, make_networks
from hnseg.inference.decision import decide, remove_faint, remove_small
from hnseg.inference.ensemble import MAPS, Clock, Disagreement, LogitsCache, StageEnsemble
from hnseg.inference.lesions import Lesion, measure, review_reasons
from hnseg.inference.roi_cover import blend, cover_rois, lesion_ml_outside
from hnseg.models.bundle import Bundle

# A smaller part of the ROI without PET is not reported.
_LEAST_SHARE = 0.01


def limits(
    stage: Stage, grids: Sequence[Grid], ct: sitk.Image, pet: sitk.Image, head: sitk.Image | None
) -> Iterator[str]:
    """Says where the scan ends in the head, and how much of the ROI is without PET.

    Args:
        stage: The stage.
        grids: Its cubes.
        ct: CT, HU.
        pet: PET, SUV, on a grid of its own.
        head: The head mask that has placed the ROI, where one has.

    Raises:
        HnsegError: A head mask places the ROI outside the CT, or the whole ROI is without PET. Not so around
            lesions: the stage that found them has seen PET elsewhere.
    """
    if head is not None:
        cut = cuts(head, ct)
        if cut.top:
            yield "CT cut off at the top of the head: the head's height, which places the ROI, is unsure"
        if cut.bottom:
            yield "CT cut off within the head: it shows no neck"
    if stage.name == "localiser":  # which sees CT alone
        return
    if stage.placement == "below_head" and all(index_box(ct, grid.corners) is None for grid in grids):
        low, high = bounds(ct)
        raise HnsegError(
            f"the head mask places the {stage.name} ROI around {_point(grids[0].center)} mm, outside the CT "
            f"(from {_point(low)} to {_point(high)} mm): check that the mask is of this scan"
        )
    share = without_pet(grids, ct, pet)
    if share == 1 and stage.placement != "lesions":
        low, high = bounds(pet)
        raise HnsegError(
            f"PET does not reach the {stage.name} ROI (around {_point(grids[0].center)} mm; the PET lies "
            f"from {_point(low)} to {_point(high)} mm): check that both belong to one examination"
        )
    if share >= _LEAST_SHARE:
        yield f"PET does not reach {share:.0%} of the {stage.name} ROI: seen on CT alone there"


def _point(point: Point) -> str:
    return "({:.0f}, {:.0f}, {:.0f})".format(*point)


@dataclass
class Segmentation:
    """What the cascade makes of a case."""

    mask: sitk.Image  # uint8 labels on the CT's grid
    out_of_fold: bool  # no network that was used, but for the localiser, had been trained on the case
    decision: Decision  # by which the mask was decided
    lesion_ml_outside_roi: float | None = None  # coarse lesion in no fine cube; None where it places none
    fallbacks: list[Fallback] = field(default_factory=list)  # what placed an ROI where nothing was found
    # The fallbacks in words, where the scan ends within the ROI or the head, and how members ran.
    notes: list[str] = field(default_factory=list)
    # `resample` (ROIs placed and cut out), each stage's networks, `back` (to the CT's grid, and measured)
    seconds: dict[str, float] = field(default_factory=dict)
    grids: dict[str, list[Grid]] = field(default_factory=dict)  # where each stage looked
    lesions: list[Lesion] = field(default_factory=list)  # of the mask, if it holds no heads
    review_reasons: list[str] = field(default_factory=list)  # why a reader should look at the case first
    # Those asked for, float32 (z, y, x) in `box`: `probability_CLASS`, `entropy`, `mutual_information`.
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    box: Box | None = None  # the part (z, y, x) of the CT that the last stage's ROI reaches, if any

    def volumes(self) -> Iterator[tuple[str, sitk.Image]]:
        """The maps by name, one at a time on the CT's grid, float32 and zero outside the ROI."""
        for name, values in self.maps.items():
            whole = np.zeros(self.mask.GetSize()[::-1], np.float32)
            whole[self.box] = values
            yield name, from_array(whole, self.mask)


ORDER = ("localiser", "coarse", "fine")
_PLACED_BY = {"below_head": "localiser", "lesions": "coarse"}  # stage by rule of placement


class Cascade:
    """Runs the stages of a bundle one after the other.

    Args:
        bundle: The trained members. Stages it does not have are left out.
        networks: What runs them, on one device.
        last_stage: The last stage to run; its labels become the mask.
        mirror: Average over mirrorings in the last stage; None follows the bundle.
        out_of_fold: Segment each case with the members that were not trained on it.
        head_masks: Folder of head masks CASE.nii.gz (or .nii, .mha), which stand for the localiser where
            there is one.
        lesions: True masks by case, which place the fine ROI instead of the stages before it: an oracle,
            which no patient's scan comes with.
        probabilities: Return the fused probability of each class.
        uncertainty: Return entropy and mutual information of the members.

    Raises:
        HnsegError: The bundle lacks the stage asked for, or one that must place the next, or its rules or
            members do not fit together.
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Networks,
        *,
        last_stage: str = "fine",
        mirror: bool | None = None,
        out_of_fold: bool = False,
        head_masks: Path | None = None,
        lesions: Mapping[str, Path] | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> None:
        self.bundle, self.networks, self.out_of_fold, self.lesions = bundle, networks, out_of_fold, lesions
        self.probabilities, self.uncertainty = probabilities, uncertainty
        rules = bundle.decision
        # Labels of an earlier stage are those that place the next ROI: the fine mask's rules are not theirs.
        rules = rules if last_stage == "fine" else rules.placing
        if rules.resample_output == "labels" and rules.roi_cover == "multiple":
            raise HnsegError(
                "decision.resample_output=labels with roi_cover=multiple: labels of cubes that overlap have "
                "no mean; set decision.resample_output=probabilities"
            )
        self.decision = rules if mirror is None else replace(rules, mirror=mirror)
        self.names = [name for name in ORDER[: ORDER.index(last_stage) + 1] if bundle.of_stage(name)]
        if lesions is not None:
            self.names = self.names[-1:]
        if last_stage not in self.names:
            present = ", ".join(dict.fromkeys(member.stage.name for member in bundle.members))
            raise HnsegError(
                f"last_stage={last_stage}: {bundle.path} has no {last_stage} member, only {present}"
            )
        self.head_masks = None
        for name in self.names:
            stage = self._ensemble(bundle, name).stage  # also refuses members that do not fit together
            placing = _PLACED_BY.get(stage.placement)
            if placing == "localiser":
                self.head_masks = head_masks
            given = lesions is not None or (placing == "localiser" and head_masks is not None)
            if placing and not given and not bundle.of_stage(placing):
                remedy = f"export a {placing} run too" + ", or give head_masks=DIR" * (placing == "localiser")
                raise HnsegError(
                    f"{bundle.path} has no {placing} member to place the {name} ROI by; {remedy}"
                )

    @classmethod
    def of(
        cls,
        call: Inference,
        bundle: Bundle,
        networks: Networks,
        lesions: Mapping[str, Path] | None = None,
    ) -> Cascade:
        """The cascade of a call of hnseg infer: its arm of the bundle, by its rules."""
        _require_effect(call.decision.given, bundle)
        bundle = bundle.arm(call.arms.name, plain(call.arms.members))
        bundle = replace(bundle, decision=replace(bundle.decision, **call.decision.given))
        names = ("last_stage", "mirror", "out_of_fold", "head_masks", "probabilities", "uncertainty")
        settings: dict[str, Any] = {name: getattr(call, name) for name in names}
        return cls(
            bundle.whole() if call.windows == "whole" else bundle, networks, lesions=lesions, **settings
        )

    def __call__(
        self, ct: sitk.Image, pet: sitk.Image, case_id: str = "", cache: LogitsCache | None = None
    ) -> Segmentation:
        """Segments a case.

        Args:
            ct: CT in HU, any orientation.
            pet: PET in SUV, on a grid of its own.
            case_id: By which members know what they were trained on, and head masks are found.
            cache: Members' logits on this case, shared by cascades that differ in their members alone: not in
                windows, precision or placement.

        Raises:
            HnsegError: The case has no head mask and no localiser, or every member of a stage was trained on
                it, or as `place` and `limits`.
        """
        found = head = manual = self._given_head(case_id)
        if self.lesions is not None:
            found = read_label(self.lesions[case_id])
        case = case_id, digest_voxels(ct)
        ensembles = self._for_case(*case, without_head=manual is not None)
        used = [member for ensemble in ensembles for member in ensemble.members]
        seen = {member.stage.name for member in used if member.has_seen(*case)}
        result = Segmentation(ct, not seen - set(self._only_places), self.decision)
        clock = Clock()
        for ensemble in ensembles:
            clock.begin("resample")
            stage = ensemble.stage
            placed = place(
                stage, ct, pet, found, head=head, fallback=self.decision.fallback, manual=manual is not None
            )
            grids = [placed.grid]
            if placed.fallback:
                result.fallbacks.append(placed.fallback)
                result.notes.append(placed.note)
            elif stage.placement == "lesions" and found is not None:
                if self.decision.roi_cover == "multiple":
                    grids = cover_rois(found, placed.grid, self.decision.floors(stage.classes))
                result.lesion_ml_outside_roi = lesion_ml_outside(found, grids)
            result.grids[stage.name] = grids
            under_head = stage.placement == "below_head" and not placed.fallback
            result.notes += limits(stage, grids, ct, pet, head if under_head else None)
            if ensemble is ensembles[-1]:
                self._finish(result, ensemble, ct, pet, clock, cache)
            else:
                # The recipe's rule is for the mask; what only places the next ROI is the likeliest class.
                probabilities = ensemble.probabilities(ct, pet, placed.grid, clock, cache=cache)
                found = placed.grid.image(decide(probabilities[1:], self.decision.placing, stage.classes))
                head = found if stage.name == "localiser" else head
        clock.begin("")
        result.seconds = clock.seconds
        result.notes += filter(None, map(self.networks.note, used))
        if self.out_of_fold and seen:
            result.notes.append("the localiser was trained on this case: it only places the coarse ROI")
        result.notes += [note for ensemble in ensembles for note in ensemble.notes]
        return result

    def _finish(
        self,
        result: Segmentation,
        ensemble: StageEnsemble,
        ct: sitk.Image,
        pet: sitk.Image,
        clock: Clock,
        cache: LogitsCache | None,
    ) -> None:
        """The last stage's cubes, decided and brought to the CT's grid, in the order of the rules."""
        stage, rules = ensemble.stage, self.decision
        grids, classes, count = result.grids[stage.name], stage.classes, len(stage.classes)
        labels = np.zeros(ct.GetSize()[::-1], np.uint8)
        votes: list[NDArray[np.float32]] = []

        def predict(grid: Grid) -> NDArray[np.float32]:
            """(C, z, y, x): probabilities of the classes, and uncertainty if asked for."""
            several = len(ensemble.members) > 1
            gathered = Disagreement(information=self.uncertainty) if several or self.uncertainty else None
            fused = ensemble.probabilities(ct, pet, grid, clock, gathered, cache)
            clock.begin("back")
            if gathered is not None and several:
                votes.append(gathered.agreement())
            if gathered is None or not self.uncertainty:
                return fused[1:]
            return np.concatenate([fused[1:], gathered.uncertainty(fused)])

        cubes: Iterable[NDArray[np.float32]] = map(predict, grids)
        if rules.resample_output == "labels":
            cubes = list(cubes)  # of one cube, which is brought back twice: decided, and as maps
        placed = blend(grids, cubes, ct)
        if placed is not None:
            maps, result.box = placed
            if rules.resample_output == "labels":
                (cube,) = cubes
                pasted = to_image(decide(cube[:count], rules, classes)[None], grids[0], ct)
                assert pasted is not None  # what the maps reach, the labels reach
                decided = pasted[0][0]
            else:
                decided = decide(maps[:count], rules, classes)
            labels[result.box] = remove_small(decided, voxel_ml(ct.GetSpacing()), rules.floors(classes))
            names = [f"probability_{name}" for name in classes] + list(MAPS)
            asked = [self.probabilities] * count + [self.uncertainty] * len(MAPS)
            wanted = zip(names, maps, asked, strict=False)  # maps may lack the uncertainty
            result.maps = {name: values for name, values, is_asked in wanted if is_asked}
        result.mask = from_array(labels, ct)
        if rules.node_suv_peak and "GTVn" in classes:
            result.mask = remove_faint(result.mask, pet, classes.index("GTVn") + 1, rules.node_suv_peak)
        if stage.name == "localiser":
            return
        if result.box is not None:
            z, y, x = result.box
            result.lesions = measure(result.mask[x, y, z], pet, classes, maps[:count], votes, grids)
        result.review_reasons = review_reasons(result.lesions, result.notes, result.lesion_ml_outside_roi)

    @property
    def _only_places(self) -> Sequence[str]:
        """The localiser where another stage segments: a box of the head holds the same whoever drew it."""
        return self.names[:1] if self.names[0] == "localiser" != self.names[-1] else ()

    def require_out_of_fold(self, case_ids: Sequence[str]) -> None:
        """Refuses, before the first case, a list of which a stage can segment nothing out of fold."""
        if self.out_of_fold:
            stages = [name for name in self.names if name not in self._only_places]
            self.bundle.require_out_of_fold(case_ids, stages)

    def _for_case(self, case_id: str, ct_digest: str, *, without_head: bool) -> list[StageEnsemble]:
        """The stages that a case needs, each with the members that may segment it."""
        bundle = self.bundle.out_of_fold(case_id, ct_digest) if self.out_of_fold else self.bundle
        for name in self._only_places:
            if not bundle.of_stage(name):
                bundle = replace(bundle, members=(*self.bundle.of_stage(name), *bundle.members))
        names = [name for name in self.names if not (without_head and name == "localiser")]
        for name in names:
            if not bundle.of_stage(name):
                raise HnsegError(
                    f"every {name} member was trained on it; out_of_fold=true needs one that was not: "
                    "export more folds, or set out_of_fold=false"
                )
        return [self._ensemble(bundle, name) for name in names]

    def _ensemble(self, bundle: Bundle, name: str) -> StageEnsemble:
        mirror = self.decision.mirror and name == self.names[-1]
        return StageEnsemble(bundle.of_stage(name), self.networks, self.decision, mirror=mirror)

    def _given_head(self, case_id: str) -> sitk.Image | None:
        path = None if self.head_masks is None else mask_file(self.head_masks, case_id)
        if path is not None and path.exists():
            return read_label(path)
        if path is not None and "localiser" not in self.names:
            raise HnsegError(f"{path}: no such head mask, and the bundle has no localiser; add either")
        return None


def load_cascades(call: Inference, devices: Sequence[torch.device]) -> list[Cascade]:
    """The cascade of a call of hnseg infer on each device."""
    bundle = Bundle.load(call.bundle)
    return [Cascade.of(call, bundle, networks_for(call, device)) for device in devices]


def networks_for(call: Inference, device: torch.device) -> Networks:
    """What runs the networks of a call of hnseg infer on a device."""
    if call.trainer.threads:
        torch.set_num_threads(call.trainer.threads)
    return make_networks(device, call.backend, call.trainer.precision)


def _require_effect(rules: Mapping[str, Any], bundle: Bundle) -> None:
    """Refuses rules for one call that the others, or the members, leave without effect."""
    models = sorted({member.card.model for member in bundle.members})
    decision = replace(bundle.decision, **rules)
    weights, thresholds = rules.get("weights"), rules.get("thresholds")
    if unknown := [name for name in weights or () if name not in models]:
        raise HnsegError(
            f"decision.weights: no model {unknown[0]} in {bundle.path}; choose among {', '.join(models)}"
        )
    if weights and decision.fusion != "flat":
        raise HnsegError(f"decision.weights={weights}: fusion=authors has none; set decision.fusion=flat")
    if thresholds and any(thresholds.values()) and decision.rule != "argmax":
        raise HnsegError(f"decision.thresholds={thresholds}: rule=half has none; set decision.rule=argmax")
