"""The members of one stage: weights streamed, one running mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from numpy.typing import NDArray
from torch import Tensor

from hnseg.data.intensity import InputSpec
from hnseg.data.sampling import Sampling
from hnseg.errors import HnsegError
from hnseg.geometry import Grid
from hnseg.hardware import Precision
from hnseg.inference.predictor import Predictor
from hnseg.models.bundle import Member
from hnseg.stage import Stage


class StageEnsemble:
    """Predicts with every member of a stage and averages their probabilities, class by class.

    Only one member's weights are in memory at a time. Members that ask for the same input share it.

    Args:
        members: At least one; all of one stage and grid.
        device: Where the networks run.
        precision: Their arithmetic.
        mirror: Average over mirrorings.

    Raises:
        HnsegError: The members do not share a grid.
    """

    def __init__(
        self, members: Sequence[Member], device: torch.device, precision: Precision, *, mirror: bool = False
    ) -> None:
        self.members, self.device, self.precision, self.mirror = list(members), device, precision, mirror
        self.stage: Stage = self.members[0].stage
        for member in self.members:
            if member.stage != self.stage:
                raise HnsegError(
                    f"bundle: {self.members[0].card['name']} and {member.card['name']} are of one stage but "
                    "differ in its grid; export members trained with one stage configuration"
                )

    def probabilities(self, ct: sitk.Image, pet: sitk.Image, grid: Grid) -> NDArray[np.float32]:
        """Mean class probabilities on a grid.

        Args:
            ct: CT, HU.
            pet: PET, SUV.
            grid: The stage's grid on this case.

        Returns:
            (K, z, y, x), background first, on `grid`.
        """
        volumes: dict[Sampling, dict[str, Tensor]] = {}
        inputs: dict[InputSpec, Tensor] = {}
        total: Tensor | None = None
        for member in self.members:
            spec = InputSpec.from_dict(member.card["input"])
            if spec.sampling not in volumes:
                images = spec.sampling.images(ct, pet, grid, antialias=self.stage.antialias)
                volumes[spec.sampling] = {name: torch.from_numpy(a)[None] for name, a in images.items()}
            if spec not in inputs:
                inputs[spec] = _network_input(volumes[spec.sampling], spec).to(self.device)
            softmax = self._run(member, inputs[spec])
            mean = _uncrop(softmax, grid.shape).cpu()
            total = mean if total is None else total.add_(mean)
        assert total is not None
        return (total / len(self.members)).numpy()

    def _run(self, member: Member, image: Tensor) -> Tensor:
        network = member.network()
        member.load_into(network)
        network.to(self.device).to(memory_format=torch.channels_last_3d)
        predictor = Predictor(tuple(member.card["patch"]), mirror=self.mirror, precision=self.precision)
        return predictor(network, image).softmax(1)[0]


def _network_input(volumes: dict[str, Tensor], spec: InputSpec) -> Tensor:
    """(1, C, z, y, x) for one input chain; the volumes are left as they are."""
    subject = tio.Subject({name: tio.ScalarImage(tensor=data.clone()) for name, data in volumes.items()})
    return spec.transform()(subject)["image"].data[None].float()


def _uncrop(probabilities: Tensor, shape: Sequence[int]) -> Tensor:
    """Takes the padding of the input chain off again. TorchIO pads the odd voxel in front."""
    front = [(padded - n + 1) // 2 for padded, n in zip(probabilities.shape[1:], shape, strict=True)]
    box = tuple(slice(a, a + n) for a, n in zip(front, shape, strict=True))
    return probabilities[(slice(None), *box)]
