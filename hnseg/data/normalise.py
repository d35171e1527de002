"""What nnU-Net and Auto3DSeg do to a channel on top of the stage's scaling, and the cohort's constants."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Scheme = Literal["zscore", "ct", "range", "sigmoid", "cohort", "rescale", "none"]
SCHEMES: tuple[str, ...] = get_args(Scheme)
# Constants of the training cohort that each scheme needs; the others take what they need from the image.
CONSTANTS = {
    "ct": ("lower", "upper", "mean", "std"),
    "range": ("lower", "upper"),
    "cohort": ("mean", "std"),
}
_EPS = 1e-8


@dataclass(frozen=True)
class Normalise:
    """Normalises one channel.

    Args:
        scheme: `zscore`: mean 0 and standard deviation 1 over the image (nnU-Net's ZScoreNormalization
            without mask). `ct`: clipped to [lower, upper], then (x - mean) / std (CTNormalization).
            `range`: lower → -1 and upper → 1, unclipped, then a sigmoid (Auto3DSeg's CT). `sigmoid`:
            sigmoid((x - min) / std) of the image (Auto3DSeg's PET). `cohort`: (x - mean) / std with
            constants, so that an absolute scale stays one. `rescale`: to [0, 1] by the image's extremes
            (RescaleTo01Normalization). `none`: as it is.
        lower: In the units of the channel, like the others: mostly the 0.5 % foreground percentile.
        upper: Mostly the 99.5 % foreground percentile.
        mean: Of the cohort.
        std: Of the cohort.
    """

    scheme: Scheme
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"normalise={self.scheme}: choose one of {', '.join(SCHEMES)}")

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Normalise:
        """Reads what `to_dict` wrote."""
        return cls(**entries)

    def to_dict(self) -> dict[str, Any]:
        """The scheme and the constants that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def missing(self) -> tuple[str, ...]:
        """Constants that the scheme needs and that are not known yet."""
        needed = CONSTANTS.get(self.scheme, ())
        return tuple(f.name for f in fields(self) if f.name in needed and getattr(self, f.name) is None)

    def __call__(self, channel: Tensor) -> Tensor:
        """One channel (z, y, x) float → the same shape, normalised.

        Raises:
            ValueError: Constants of the cohort are needed and not known.
        """
        if self.missing:
            raise ValueError(f"normalise={self.scheme} needs {', '.join(self.missing)} of the training fold")
        return getattr(self, f"_{self.scheme}")(channel)

    def _none(self, x: Tensor) -> Tensor:
        return x

    def _zscore(self, x: Tensor) -> Tensor:
        return (x - x.mean()) / x.std(unbiased=False).clamp_min(_EPS)

    def _ct(self, x: Tensor) -> Tensor:
        lower, upper, mean, std = (self._constant(name) for name in CONSTANTS["ct"])
        return (x.clamp(lower, upper) - mean) / max(std, _EPS)

    def _range(self, x: Tensor) -> Tensor:
        lower, upper = (self._constant(name) for name in CONSTANTS["range"])
        return torch.sigmoid((x - lower) / max(upper - lower, _EPS) * 2 - 1)

    def _sigmoid(self, x: Tensor) -> Tensor:
        # A constant image has no spread: 0 / 0 in Auto3DSeg, 1/2 everywhere here.
        return torch.sigmoid((x - x.min()) / x.std().clamp_min(_EPS))

    def _cohort(self, x: Tensor) -> Tensor:
        mean, std = (self._constant(name) for name in CONSTANTS["cohort"])
        return (x - mean) / max(std, _EPS)

    def _rescale(self, x: Tensor) -> Tensor:
        x = x - x.min()
        return x / x.max().clamp_min(_EPS)

    def _constant(self, name: str) -> float:
        value: float = getattr(self, name)
        return value
