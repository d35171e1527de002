"""Head → coarse → fine: one case from CT and PET to a mask on the CT's grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from hnseg.card import Decision, Stage
from hnseg.data.resample import index_box
from hnseg.devices import Precision
from hnseg.errors import HnsegError
from hnseg.imaging.case import mask_file
from hnseg.imaging.grid import Grid, Point, bounds
from hnseg.imaging.images import from_array, read_label
from hnseg.imaging.masks import voxel_ml
from hnseg.imaging.placement import Fallback, cuts, place, without_pet
from hnseg.inference.backends import Networks
from hnseg.inference.decision import decide, decide_labels, read_decision
from hnseg.inference.ensemble import MAPS, Clock, Disagreement, LogitsCache, StageEnsemble
from hnseg.inference.lesions import Lesion, measure, review_reasons
from hnseg.inference.postprocess import remove_faint, remove_small
from hnseg.inference.roi_cover import cover_rois, ml_outside
from hnseg.inference.stitching import Box, blend, paste
from hnseg.models.bundle import Bundle

# Less than a hundredth of the ROI without PET is not worth a word.
_LEAST_SHARE = 0.01


def limits(
    stage: Stage, grids: Sequence[Grid], ct: sitk.Image, pet: sitk.Image, head: sitk.Image | None
) -> Iterator[str]:
    """Says where the scan ends in the head, and how much of the ROI is without PET.

    Args:
        stage: The stage.
        grids: Its cubes, one or several.
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
    if stage.name == "head":  # which sees CT alone
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
    """What the cascade makes of a case.

    Args:
        mask: uint8 labels on the CT's grid.
        out_of_fold: No network that was used had been trained on the case.
        decision: The rules by which the mask was decided.
        lesion_ml_outside_roi: Coarse lesion that no cube of the fine stage held, ml; None where lesions place
            no cube.
        fallbacks: What placed an ROI where the stage before found nothing.
        notes: These in words, where the scan ends within the ROI or the head, and how members ran.
        seconds: Time each step took: `resample` (ROIs placed and cut out), each stage's networks, `back` (to
            the CT's grid, decided and measured).
        grids: Where each stage looked.
        lesions: What the mask holds; none where it holds heads.
        review_reasons: Why a reader should look at the case before others.
        maps: Those that were asked for, float32 (z, y, x) in `box`: `probability_CLASS`, `entropy` and
            `mutual_information`.
        box: The part (z, y, x) of the CT that the last stage's ROI reaches; None where they do not meet.
    """

    mask: sitk.Image
    out_of_fold: bool
    decision: Decision
    lesion_ml_outside_roi: float | None = None
    fallbacks: list[Fallback] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    grids: dict[str, list[Grid]] = field(default_factory=dict)
    lesions: list[Lesion] = field(default_factory=list)
    review_reasons: list[str] = field(default_factory=list)
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    box: Box | None = None

    def volumes(self) -> Iterator[tuple[str, sitk.Image]]:
        """The maps by name, one at a time on the CT's grid, float32 and zero outside the ROI."""
        for name, values in self.maps.items():
            whole = np.zeros(self.mask.GetSize()[::-1], np.float32)
            whole[self.box] = values
            yield name, from_array(whole, self.mask)


ORDER = ("head", "coarse", "fine")


class Cascade:
    """Runs the stages of a bundle one after the other.

    Args:
        bundle: The trained members. Stages it does not have are left out.
        device: Where the networks run.
        precision: Their arithmetic.
        last_stage: The last stage to run; its labels become the mask.
        mirror: Average over mirrorings in the last stage; None follows the bundle.
        out_of_fold: Segment each case with the members that were not trained on it.
        head_masks: Folder of head masks CASE.nii.gz (or .nii, .mha), which stand for the head stage where
            there is one.
        lesions: True masks by case, which place the fine ROI instead of the stages before it: an oracle,
            which no patient's scan comes with.
        networks: What runs the networks, on `device`; None is PyTorch.
        cache: To share members' logits on a case with other arms of the ensemble.
        probabilities: Return the fused probability of each class.
        uncertainty: Return entropy and mutual information of the members.

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
        last_stage: str = "fine",
        mirror: bool | None = None,
        out_of_fold: bool = False,
        head_masks: Path | None = None,
        lesions: Mapping[str, Path] | None = None,
        networks: Networks | None = None,
        cache: LogitsCache | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> None:
        self.bundle, self.precision, self.out_of_fold = bundle, precision, out_of_fold
        self.probabilities, self.uncertainty = probabilities, uncertainty
        rules = read_decision(bundle.decision)
        # A mask of an earlier stage is what would place the next ROI, no other.
        rules = rules if last_stage == "fine" else rules.placing
        self.decision = rules if mirror is None else replace(rules, mirror=mirror)
        self.names = [name for name in ORDER[: ORDER.index(last_stage) + 1] if bundle.of_stage(name)]
        if lesions is not None:
            self.names = self.names[-1:]
        if last_stage not in self.names:
            present = ", ".join(dict.fromkeys(member.stage.name for member in bundle.members))
            raise HnsegError(
                f"last_stage={last_stage}: {bundle.path} has no {last_stage} member, only {present}"
            )
        placements = {bundle.of_stage(name)[0].stage.placement for name in self.names}
        self.head_masks = head_masks if "below_head" in placements else None
        self.lesions, self.cache = lesions, cache
        self.networks = networks or Networks(device)
        for name in self.names:
            if lesions is None:
                _require_placing_stage(bundle, name, head_masks)
            self._ensemble(bundle, name)  # refuses members that do not fit together before the first case

    def __call__(self, ct: sitk.Image, pet: sitk.Image, case_id: str = "") -> Segmentation:
        """Segments one case.

        Args:
            ct: CT in HU, any orientation.
            pet: PET in SUV, on a grid of its own.
            case_id: By which members know what they were trained on, and head masks are found.

        Raises:
            HnsegError: A stage found nothing and the bundle's rules have no fallback, or the case has no head
                mask and no head stage, or a stage has no member that has not seen it, or the PET misses the
                ROI.
        """
        found = head = manual = self._given_head(case_id)
        if self.lesions is not None:
            found = read_label(self.lesions[case_id])
        if self.cache is not None:
            self.cache.begin(ct, pet)
        ensembles = self._for_case(case_id, without_head=manual is not None)
        used = [member for ensemble in ensembles for member in ensemble.members]
        result = Segmentation(ct, not any(member.has_seen(case_id) for member in used), self.decision)
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
                result.lesion_ml_outside_roi = ml_outside(found, grids)
            result.grids[stage.name] = grids
            under_head = stage.placement == "below_head" and not placed.fallback
            result.notes += limits(stage, grids, ct, pet, head if under_head else None)
            if ensemble is ensembles[-1]:
                self._finish(result, ensemble, ct, pet, clock)
            else:
                # The recipe's rule is for the mask; what only places the next ROI is the likeliest class.
                probabilities = ensemble.probabilities(ct, pet, placed.grid, clock)
                found = placed.grid.image(decide(probabilities[1:], "argmax"))
                head = found if stage.name == "head" else head
        result.seconds = clock.stop()
        result.notes += filter(None, map(self.networks.note, used))
        result.notes += [note for ensemble in ensembles for note in ensemble.notes]
        return result

    def _finish(
        self, result: Segmentation, ensemble: StageEnsemble, ct: sitk.Image, pet: sitk.Image, clock: Clock
    ) -> None:
        """The last stage's cubes, decided and brought to the CT's grid, in the order of the rules."""
        stage, rules = ensemble.stage, self.decision
        grids, classes, count = result.grids[stage.name], stage.classes, len(stage.classes)
        labels = np.zeros(ct.GetSize()[::-1], np.uint8)
        votes: list[NDArray[np.float32]] = []
        cubes: Iterable[NDArray[np.float32]] = (
            self._cube(ensemble, ct, pet, grid, clock, votes) for grid in grids
        )
        if rules.resample_output == "labels":
            cubes = list(cubes)  # they are brought back twice: decided, and as maps
        placed = blend(grids, cubes, ct)
        if placed is not None:
            maps, result.box = placed
            if rules.resample_output == "labels":
                pasted = paste(grids, (decide_labels(cube[:count], rules, classes) for cube in cubes), ct)
                assert pasted is not None  # what the maps reach, the labels reach
                decided, _ = pasted
            else:
                decided = decide_labels(maps[:count], rules, classes)
            labels[result.box] = remove_small(decided, voxel_ml(ct.GetSpacing()), rules.floors(classes))
            result.maps = self._requested(maps, classes)
        result.mask = from_array(labels, ct)
        if rules.node_suv_peak and "GTVn" in classes:
            result.mask = remove_faint(result.mask, pet, classes.index("GTVn") + 1, rules.node_suv_peak)
        if stage.name == "head":
            return
        if result.box is not None:
            z, y, x = result.box
            result.lesions = measure(result.mask[x, y, z], pet, classes, maps[:count], votes, grids)
        result.review_reasons = review_reasons(result.lesions, result.notes, result.lesion_ml_outside_roi)

    def _cube(
        self,
        ensemble: StageEnsemble,
        ct: sitk.Image,
        pet: sitk.Image,
        grid: Grid,
        clock: Clock,
        votes: list[NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """(C, z, y, x): probabilities, and uncertainty if asked for; `votes` gains those of members."""
        several = len(ensemble.members) > 1
        gathered = Disagreement(information=self.uncertainty) if several or self.uncertainty else None
        fused = ensemble.probabilities(ct, pet, grid, clock, gathered)
        clock.begin("back")
        if gathered is not None and several:
            votes.append(gathered.agreement())
        if gathered is None or not self.uncertainty:
            return fused[1:]
        return np.concatenate([fused[1:], gathered.uncertainty(fused)])

    def _requested(self, maps: NDArray[np.float32], classes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The channels of `_cube` by name, those that were asked for."""
        names = [f"probability_{name}" for name in classes] + list(MAPS)
        wanted = [self.probabilities] * len(classes) + [self.uncertainty] * len(MAPS)
        return {name: values for name, values, asked in zip(names, maps, wanted, strict=False) if asked}

    def _for_case(self, case_id: str, *, without_head: bool) -> list[StageEnsemble]:
        """The stages that a case needs, each with the members that may segment it."""
        bundle = self.bundle.out_of_fold(case_id) if self.out_of_fold else self.bundle
        names = [name for name in self.names if not (without_head and name == "head")]
        for name in names:
            if not bundle.of_stage(name):
                raise HnsegError(
                    f"every {name} member was trained on it; out_of_fold=true needs one that was not: "
                    "export more folds, or set out_of_fold=false"
                )
        return [self._ensemble(bundle, name) for name in names]

    def _ensemble(self, bundle: Bundle, name: str) -> StageEnsemble:
        return StageEnsemble(
            bundle.of_stage(name),
            self.networks.device,
            self.precision,
            mirror=self.decision.mirror and name == self.names[-1],
            decision=self.decision,
            networks=self.networks,
            cache=self.cache,
        )

    def _given_head(self, case_id: str) -> sitk.Image | None:
        path = None if self.head_masks is None else mask_file(self.head_masks, case_id)
        if path is not None and path.exists():
            return read_label(path)
        if path is not None and "head" not in self.names:
            raise HnsegError(f"{path}: no such head mask, and the bundle has no head member; add either")
        return None


def _require_placing_stage(bundle: Bundle, name: str, head_masks: Path | None) -> None:
    """Refuses a bundle in which every case would have to fall back."""
    placing = {"below_head": "head", "lesions": "coarse"}.get(bundle.of_stage(name)[0].stage.placement)
    given = placing == "head" and head_masks is not None
    if placing and not given and not bundle.of_stage(placing):
        remedy = f"export a {placing} run too" + (", or give head_masks=DIR" if placing == "head" else "")
        raise HnsegError(f"{bundle.path} has no {placing} member to place the {name} ROI by; {remedy}")
