"""The members of one stage: weights streamed, one running map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from numpy.typing import NDArray
from torch import Tensor

from hnseg.data.coordinates import network_input
from hnseg.data.intensity import InputSpec
from hnseg.data.sampling import Sampling
from hnseg.errors import HnsegError
from hnseg.geometry import Grid
from hnseg.hardware import Precision
from hnseg.inference.clock import Clock
from hnseg.inference.decision import Decision
from hnseg.inference.fusion import Fusion
from hnseg.inference.memory import Memory
from hnseg.inference.networks import Networks
from hnseg.inference.predictor import Predictor
from hnseg.inference.uncertainty import Spread
from hnseg.models.member import Member
from hnseg.stage import Stage


class StageEnsemble:
    """Predicts with every member of a stage and fuses what they say.

    Only one member's weights of a kind of network are in memory at a time. Members that ask for the same
    input share it. Ensembles that share networks take turns with them, member by member; whatever else they
    do, they do meanwhile.

    `remarks` gathers what to know of how its members ran.

    Args:
        members: At least one; all of one stage and grid.
        device: Where the networks run.
        precision: Their arithmetic.
        mirror: Average over mirrorings.
        decision: How members are fused; the others of its rules do not matter here.
        networks: To share networks with other ensembles.
        memory: To share what the networks say of a case too; of the images last given to `turn_to`.

    Raises:
        HnsegError: The members do not share a grid, or all have the weight 0.
    """

    def __init__(
        self,
        members: Sequence[Member],
        device: torch.device,
        precision: Precision,
        *,
        mirror: bool = False,
        decision: Decision | None = None,
        networks: Networks | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.device, self.precision, self.mirror = device, precision, mirror
        self.decision, self.networks = decision or Decision(), networks or Networks(device)
        self.memory, self.remarks = memory, list[str]()
        self.stage: Stage = members[0].stage
        for member in members:
            if member.stage != self.stage:
                raise HnsegError(
                    f"bundle: {members[0].card['name']} and {member.card['name']} are of one stage but "
                    "differ in its grid; export members trained with one stage configuration"
                )
        fusion = self._fusion()
        self.members = [member for member in members if fusion.weight(member.card["model"]) > 0]
        if not self.members:
            raise HnsegError(
                f"decision.weights={dict(self.decision.weights)} leave no {self.stage.name} member; "
                "give one of their models a weight"
            )

    def probabilities(
        self,
        ct: sitk.Image,
        pet: sitk.Image,
        grid: Grid,
        clock: Clock | None = None,
        spread: Spread | None = None,
    ) -> NDArray[np.float32]:
        """Class probabilities on a grid.

        Args:
            ct: CT, HU.
            pet: PET, SUV.
            grid: The stage's grid on this case.
            clock: Tells resampling from the networks' time.
            spread: Gathers how the members differ.

        Returns:
            (K, z, y, x), background first, on `grid`.

        Raises:
            HnsegError: What a member says is no number, which would spoil what the others say.
        """
        inputs = _Inputs(self.stage, self.device, ct, pet, grid)
        fusion, clock = self._fusion(), clock or Clock()
        for member in self.members:
            logits = _uncrop(self._logits(member, inputs, clock), grid.shape)
            fusion.add(logits, member.card["model"], member.card["network"]["architecture"])
            if spread is not None:
                spread.add(logits, fusion.weight(member.card["model"]))
        return fusion.probabilities().cpu().numpy()

    def _logits(self, member: Member, inputs: _Inputs, clock: Clock) -> Tensor:
        """What a member says of a case, now or before."""
        key = member.card["name"], inputs.grid, self.mirror
        known = None if self.memory is None else self.memory.recall(key)
        if known is not None:
            clock.begin(self.stage.name)
            return known
        clock.begin("resample")
        image = inputs.of(InputSpec.from_dict(member.card["input"]))
        clock.begin("wait")
        with self.networks.lock:
            clock.begin(self.stage.name)
            logits = self._run(member, image)
        if self.memory is not None:
            self.memory.keep(key, logits)
        return logits

    def _run(self, member: Member, image: Tensor) -> Tensor:
        name = member.card["name"]
        logits = self._predict(self.networks(member), member, image, self.precision)
        if _is_finite(logits):
            return logits
        if self.precision == "float16":  # which ends at 65,504
            logits = self._predict(self.networks.exact(member), member, image, "float32")
            if _is_finite(logits):
                remark = f"{name}: float16 was too narrow for it, float32 was taken"
                self.remarks += [remark] if remark not in self.remarks else []  # once, however many cubes
                return logits
        raise HnsegError(
            f"{name}: what it says of this case is no number (NaN or infinite): its weights have diverged; "
            "export another checkpoint, or leave it out (ensemble=, decision.weights=)"
        )

    def _predict(
        self, network: Callable[[Tensor], Tensor], member: Member, image: Tensor, precision: Precision
    ) -> Tensor:
        return Predictor.of(member.card, mirror=self.mirror, precision=precision)(network, image)[0]

    def _fusion(self) -> Fusion:
        return Fusion(self.decision.fusion, self.decision.weights)


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
            images = spec.sampling.images(self.ct, self.pet, self.grid, **how)
            self._volumes[asked] = {name: torch.from_numpy(a)[None] for name, a in images.items()}
        if spec not in self._inputs:
            self._inputs[spec] = _network_input(self._volumes[asked], spec).to(self.device)
        return self._inputs[spec]


def _network_input(volumes: dict[str, Tensor], spec: InputSpec) -> Tensor:
    """(1, C, z, y, x) for one input chain; the volumes are left as they are."""
    subject = tio.Subject({name: tio.ScalarImage(tensor=data.clone()) for name, data in volumes.items()})
    return network_input(spec.transform()(subject))[None].float()


def _is_finite(logits: Tensor) -> bool:
    """Whether all of them are numbers; their sum, which mostly tells, is several times as fast."""
    return bool(logits.sum().isfinite() or logits.isfinite().all())


def _uncrop(logits: Tensor, shape: Sequence[int]) -> Tensor:
    """Takes the padding of the input chain off again. TorchIO pads the odd voxel in front."""
    front = [(padded - n + 1) // 2 for padded, n in zip(logits.shape[1:], shape, strict=True)]
    box = tuple(slice(a, a + n) for a, n in zip(front, shape, strict=True))
    return logits[(slice(None), *box)]
