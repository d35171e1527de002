"""How a network's input is made from HU and SUV.

The same chain runs in training and inference. It is described by an `InputSpec`, which travels in
the checkpoint, so that a trained network knows how its input was made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torchio as tio

from hnseg.data.channels import (
    Enhance,
    MinMax,
    NormaliseChannels,
    Power,
    RangeCT,
    ScalePET,
    StackChannels,
    WindowCT,
)
from hnseg.data.coordinates import AXES, AddCoordinates
from hnseg.data.normalise import Normalise
from hnseg.data.sampling import STUDY, Sampling

_NAMES = {"square": "²", "cube_root": "^(1/3)"}


@dataclass(frozen=True)
class InputSpec:
    """How a network's input is made from a study's CT in HU and PET in SUV.

    Args:
        modalities: ("ct",) for the head stage, ("ct", "pet") after it.
        sampling: What the volumes are cut from, and what lies outside it.
        ct_window: HU that become 0 and 1; None leaves CT as it is: already in [0, 1] where it comes from
            the head crop, HU where a foreign network wants HU.
        ct_range: What 0 and 1 become after the powers; unused without a window on studies.
        cte: Enhancement: powers of x beside x; which ones is said by `ct_powers` and `pet_powers`.
        pet: `minmax` over the crop, `suv` against a fixed upper bound, or `raw`.
        pet_upper: That bound, SUV.
        minmax_again: Scale both modalities by their extremes in the ROI, before the powers.
        normalise: On top, one for each channel of intensities in the order of the channels.
        pad_to: Shape (z, y, x) to which the ROI is padded after normalisation, with zeros.
        ct_powers: What enhancement adds to CT; the paper's are x² and x^(1/3).
        pet_powers: What it adds to PET, which must be in [0, 1] by then.
        coordinates: Three channels more: where each voxel lies in the ROI along x, y and z
            (`hnseg.data.coordinates`).
    """

    modalities: tuple[str, ...] = ("ct", "pet")
    sampling: Sampling = STUDY
    ct_window: tuple[float, float] | None = (-110.0, 190.0)
    ct_range: tuple[float, float] = (-1.0, 1.0)
    cte: bool = False
    pet: Literal["minmax", "suv", "raw"] = "minmax"
    pet_upper: float = 20.0
    minmax_again: bool = False
    normalise: tuple[Normalise, ...] = ()
    pad_to: tuple[int, int, int] | None = None
    ct_powers: tuple[Power, ...] = ("square", "cube_root")
    pet_powers: tuple[Power, ...] = ()
    coordinates: bool = False

    def __post_init__(self) -> None:
        if not self.normalise:
            object.__setattr__(self, "normalise", (Normalise("none"),) * len(self._intensities))
        if len(self.normalise) != len(self._intensities):
            raise ValueError(
                f"normalise has {len(self.normalise)} entries for {len(self._intensities)} channels"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> InputSpec:
        """Reads what `to_dict` wrote."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        plain["sampling"] = Sampling.from_dict(fields["sampling"])
        plain["normalise"] = tuple(Normalise.from_dict(one) for one in fields["normalise"])
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for the checkpoint and the bundle."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in own.items()}
        plain["sampling"] = self.sampling.to_dict()
        plain["normalise"] = [one.to_dict() for one in self.normalise]
        return plain

    @property
    def channels(self) -> int:
        """Number of input channels of the network."""
        return len(self.channel_names)

    @property
    def channel_names(self) -> list[str]:
        """What each input channel shows, for instance CT, CT², CT^(1/3), PET; x, y, z are coordinates."""
        shown = [name.upper() + (_NAMES[power] if power else "") for name, power in self._intensities]
        return [*shown, *(AXES if self.coordinates else ())]

    @property
    def channel_keys(self) -> list[str]:
        """The same in plain letters, as numbers are logged: ct, ct_square, ct_cube_root, pet."""
        plain = [f"{name}_{power}" if power else name for name, power in self._intensities]
        return [*plain, *(AXES if self.coordinates else ())]

    @property
    def _intensities(self) -> list[tuple[str, Power | None]]:
        """Modality and power of each channel that shows one; None is the modality itself."""
        return [(name, power) for name in self.modalities for power in (None, *self._powers(name))]

    def _powers(self, modality: str) -> tuple[Power, ...]:
        """What enhancement adds to a modality."""
        return {"ct": self.ct_powers, "pet": self.pet_powers}[modality] if self.cte else ()

    @property
    def unnormalised(self) -> InputSpec:
        """The stage's scaling alone: what a fingerprint is measured on."""
        plain = (Normalise("none"),) * len(self._intensities)
        return replace(self, normalise=plain, pad_to=None, coordinates=False)

    def transform(self) -> tio.Compose:
        """Subject with the modalities (1, z, y, x) and perhaps `label` → subject with `image` (C, z, y, x),
        and `coordinates` where the input has them: `hnseg.data.coordinates.network_input` joins the two."""
        steps: list[tio.Transform] = []
        if self.ct_window is not None:
            steps.append(WindowCT(*self.ct_window))
        if "pet" in self.modalities and self.pet != "raw":
            steps.append(ScalePET(self.pet, self.pet_upper))
        if self.minmax_again:
            steps.append(MinMax(self.modalities))
        steps += [Enhance(name, powers) for name in self.modalities if (powers := self._powers(name))]
        if self.ct_window is not None:
            steps.append(RangeCT(*self.ct_range))
        steps.append(StackChannels(self.modalities))
        steps.append(NormaliseChannels(self.normalise))
        if self.coordinates:
            steps.append(AddCoordinates())
        if self.pad_to is not None:
            # TorchIO pads symmetrically, so that the way back is a centre crop.
            steps.append(tio.CropOrPad(self.pad_to, padding_mode=0))
        return tio.Compose(steps, copy=False)
