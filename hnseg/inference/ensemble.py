"""The members of one stage: weights streamed, predictions averaged as they come, uncertainty on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from hnseg.card import Decision, InputSpec, Sampling, Stage
from hnseg.data.intensity import input_transform, network_input, to_subject
from hnseg.data.resample import sample_images
from hnseg.errors import HnsegError
from hnseg.imaging.grid import Grid
from hnseg.inference.backends import Networks
from hnseg.inference.predictor import Predictor
from hnseg.models.checkpoint import Member
from hnseg.models.nets import network_class

# A case's logits (K, z, y, x) by member, grid, and whether they are averaged over mirrorings.
LogitsCache = dict[tuple[str, Grid, bool], Tensor]
# What `Disagreement.uncertainty` returns, in its order.
MAPS = ("entropy", "mutual_information")


class Clock:
    """Seconds of each step of a case; a step that begins ends the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._step, self._since = "", perf_counter()

    def begin(self, step: str) -> None:
        """Counts the time from now on towards this step."""
        now = perf_counter()
        if self._step:
            self.seconds[self._step] = self.seconds.get(self._step, 0.0) + now - self._since
        self._step, self._since = step, now


class RunningMean:
    """A weighted mean of tensors that come one after the other."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.weight = 0.0

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        """Adds a tensor, which may change afterwards."""
        self.total = values * weight if self.total is None else self.total.add_(values, alpha=weight)
        self.weight += weight

    @property
    def value(self) -> Tensor:
        """The mean of all values added so far, at least one."""
        assert self.total is not None
        return self.total / self.weight


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy over the classes, divided by log K: 0 where a class is certain, 1 where all are equal.

    Args:
        probabilities: (K, z, y, x), at least two classes.

    Returns:
        (z, y, x).
    """
    return torch.special.entr(probabilities).sum(0) / math.log(len(probabilities))


class Disagreement:
    """How members differ, from their logits one after the other; memory does not grow with their number.

    Args:
        information: Gather what `uncertainty` needs too: every member's softmax and entropy.
    """

    def __init__(self, *, information: bool) -> None:
        self.information = information
        self._votes, self._softmax, self._entropy = RunningMean(), RunningMean(), RunningMean()

    def add(self, logits: Tensor, weight: float = 1.0) -> None:
        """Adds a member's logits (K, z, y, x), background first, with the weight that it is fused with."""
        # As argmax, many times faster: it reads across memory.
        top = logits.amax(0)
        votes = (logits[1:] == top) & (logits[0] < top)
        self._votes.add(votes.float(), weight)
        if self.information:
            softmax = logits.softmax(0)
            self._softmax.add(softmax, weight)
            self._entropy.add(entropy(softmax), weight)

    def agreement(self) -> NDArray[np.float32]:
        """Share of the members to which a class is the likeliest, (K - 1, z, y, x) without background.

        Where a class and the background are equally likely, it is the background.
        """
        return self._votes.value.cpu().numpy()

    def uncertainty(self, fused: NDArray[np.float32]) -> NDArray[np.float32]:
        """The ensemble's entropy, and the part of it that comes from members that differ.

        The latter is the mutual information of label and member, also known as BALD or the generalised
        Jensen-Shannon divergence: the entropy of the members' mean minus the mean of their entropies
        (Houlsby et al. 2011, arXiv:1112.5745). The members' mean is that of their softmax, however they
        are fused. Both are divided by log K.

        Args:
            fused: (K, z, y, x), the ensemble's probabilities.

        Returns:
            (2, z, y, x), in the order of `MAPS`.
        """
        total = entropy(torch.from_numpy(fused))
        between = entropy(self._softmax.value) - self._entropy.value
        return torch.stack([total, between.clamp_min(0).cpu()]).numpy()


class Fusion:
    """Class probabilities of an ensemble, from its members' logits one after the other.

    Args:
        decision: Its `fusion`: `flat` is the mean of all members' softmax (paper section 2.4), weighted by
            model with its `weights`. `authors` is the release's: the softmax of the mean logits of nnU-Net's
            networks, averaged with the mean softmax of the others; where all members are of one framework,
            theirs alone.
    """

    def __init__(self, decision: Decision) -> None:
        self.kind = decision.fusion
        self.weights = decision.weights if self.kind == "flat" else {}
        self._logits, self._softmax = RunningMean(), RunningMean()

    def weight(self, model: str) -> float:
        """The weight of a model's members, 1 where none is given."""
        return self.weights.get(model, 1.0)

    def add(self, logits: Tensor, model: str, framework: str) -> None:
        """Adds a member's logits (K, z, y, x); its framework is that of its network's class."""
        if self.kind == "authors" and framework == "nnunet":
            self._logits.add(logits)
        else:
            self._softmax.add(logits.softmax(0), self.weight(model))

    def probabilities(self) -> Tensor:
        """(K, z, y, x) of all members added so far, at least one."""
        maps = [self._logits.value.softmax(0)] if self._logits.weight else []
        maps += [self._softmax.value] if self._softmax.weight else []
        return maps[0] if len(maps) == 1 else (maps[0] + maps[1]) / 2


class StageEnsemble:
    """Predicts with every member of a stage and fuses their logits.

    Only one member's weights of an architecture are in memory at a time. Members with the same input chain
    share its input.

    Args:
        members: At least one; all of one stage and grid.
        networks: What runs them.
        decision: How they are fused: its `fusion` and `weights`.
        mirror: Average over mirrorings.

    Raises:
        HnsegError: The members do not share a grid, or all have the weight 0.
    """

    def __init__(
        self, members: Sequence[Member], networks: Networks, decision: Decision, *, mirror: bool
    ) -> None:
        self.networks, self.decision, self.mirror = networks, decision, mirror
        self.notes: list[str] = []  # how its members ran, for the case's record
        self.stage: Stage = members[0].stage
        for member in members:
            if member.stage != self.stage:
                raise HnsegError(
                    f"bundle: {members[0].card.name} and {member.card.name} are of one stage but "
                    "differ in its grid; export members trained with one stage configuration"
                )
        fusion = Fusion(decision)
        self.members = [member for member in members if fusion.weight(member.card.model) > 0]
        if not self.members:
            raise HnsegError(
                f"decision.weights={dict(decision.weights)} leave no {self.stage.name} member; "
                "give one of their models a weight"
            )

    def probabilities(
        self,
        ct: sitk.Image,
        pet: sitk.Image,
        grid: Grid,
        clock: Clock,
        disagreement: Disagreement | None = None,
        cache: LogitsCache | None = None,
    ) -> NDArray[np.float32]:
        """Class probabilities (K, z, y, x) of CT (HU) and PET (SUV) on a grid, background first.

        Args:
            ct: CT.
            pet: PET.
            grid: The stage's grid on this case.
            clock: Counts `resample` and the networks' time under the stage's name.
            disagreement: Gathers how the members differ.
            cache: Logits of these images, which are taken from it and put there.

        Raises:
            HnsegError: A member's logits are no numbers, which would spoil the other members'.
        """
        inputs, fusion = _Inputs(self.stage, self.networks.device, ct, pet, grid), Fusion(self.decision)
        for member in self.members:
            key = member.card.name, grid, self.mirror
            logits = None if cache is None else cache.get(key)
            if logits is None:
                clock.begin("resample")
                image = inputs.of(member.card.input)
                clock.begin(self.stage.name)
                logits = self._logits(member, image)
            if cache is not None:
                cache[key] = logits
            clock.begin(self.stage.name)
            logits, model = _uncrop(logits, grid.shape), member.card.model
            fusion.add(logits, model, network_class(member.card.network["_target_"]).framework)
            if disagreement is not None:
                disagreement.add(logits, fusion.weight(model))
        return fusion.probabilities().cpu().numpy()

    def _logits(self, member: Member, image: Tensor) -> Tensor:
        """(K, z, y, x) of an input (1, C, z, y, x)."""
        name, precision = member.card.name, self.networks.precision
        predictor = Predictor.of(member.card, mirror=self.mirror, precision=precision)
        logits = predictor(self.networks(member), image)[0]
        if _is_finite(logits):
            return logits
        if precision == "float16":  # which ends at 65,504
            predictor = Predictor.of(member.card, mirror=self.mirror)
            logits = predictor(self.networks.in_pytorch(member), image)[0]
            if _is_finite(logits):
                note = f"{name}: float16 was too narrow for it, float32 was taken"
                self.notes += [note] if note not in self.notes else []  # once, however many cubes
                return logits
        raise HnsegError(
            f"{name}: its logits on this case are no numbers (NaN or infinite): its weights have diverged; "
            "export another checkpoint, or leave it out (arms=, decision.weights=)"
        )


class _Inputs:
    """What networks are shown of one case on one grid, made once for all that ask for the same."""

    def __init__(
        self, stage: Stage, device: torch.device, ct: sitk.Image, pet: sitk.Image, grid: Grid
    ) -> None:
        self.stage, self.device, self.ct, self.pet, self.grid = stage, device, ct, pet, grid
        self._volumes: dict[tuple[Sampling, tuple[str, ...]], dict[str, Tensor]] = {}
        self._inputs: dict[InputSpec, Tensor] = {}

    def of(self, spec: InputSpec) -> Tensor:
        """(1, C, z, y, x) on the device."""
        asked = spec.sampling, spec.modalities
        if asked not in self._volumes:
            how: dict[str, Any] = {"modalities": spec.modalities, "antialias": self.stage.antialias}
            images = sample_images(spec.sampling, self.ct, self.pet, self.grid, **how)
            self._volumes[asked] = {name: torch.from_numpy(a) for name, a in images.items()}
        if spec not in self._inputs:
            subject = input_transform(spec)(to_subject(self._volumes[asked]))
            self._inputs[spec] = network_input(spec, subject)[None].to(self.device)
        return self._inputs[spec]


def _is_finite(logits: Tensor) -> bool:
    """Whether all of them are numbers; their sum, which mostly decides, is several times as fast."""
    return bool(logits.sum().isfinite() or logits.isfinite().all())


def _uncrop(logits: Tensor, shape: Sequence[int]) -> Tensor:
    """Takes the padding of the input chain off again: the odd voxel is in front."""
    front = [(padded - n + 1) // 2 for padded, n in zip(logits.shape[1:], shape, strict=True)]
    box = tuple(slice(a, a + n) for a, n in zip(front, shape, strict=True))
    return logits[(slice(None), *box)]
