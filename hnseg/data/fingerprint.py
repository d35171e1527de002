"""What depends on the data set: intensity constants, measured on the training fold.

They are measured after the stage's scaling, channel by channel, on the prepared volumes, kept beside them
and hashed into every checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torchio as tio
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from hnseg.data.cache import StageVolume
from hnseg.data.dataset import roi_subject
from hnseg.data.intensity import InputSpec, Normalise
from hnseg.errors import HnsegError
from hnseg.files import digest, replacing

PERCENTILES = (0.5, 99.5)
# Foreground voxels kept of one case: more than a lesion of 50 ml has at 1 mm, and a bound for the head.
_VOXELS = 100_000


@dataclass(frozen=True)
class ChannelFingerprint:
    """Constants of one channel.

    Args:
        pooled: 0.5 and 99.5 % percentiles, mean and standard deviation of the foreground voxels of all
            cases, each case of equal weight, as nnU-Net pools them (it draws equally many voxels of each).
        per_case: Mean over cases of each case's foreground 0.5 and 99.5 % percentiles (Auto3DSeg).
        overall: Mean and standard deviation of all voxels of all ROIs.
    """

    pooled: tuple[float, float, float, float]
    per_case: tuple[float, float]
    overall: tuple[float, float]

    def fill(self, normalise: Normalise) -> Normalise:
        """The same scheme with the constants it lacks."""
        known = {
            "ct": dict(zip(("lower", "upper", "mean", "std"), self.pooled, strict=True)),
            "range": dict(zip(("lower", "upper"), self.per_case, strict=True)),
            "cohort": dict(zip(("mean", "std"), self.overall, strict=True)),
        }
        missing: dict[str, Any] = {name: known[normalise.scheme][name] for name in normalise.missing}
        return replace(normalise, **missing)


@dataclass(frozen=True)
class Fingerprint:
    """Constants of a training fold, one entry a channel."""

    channels: tuple[ChannelFingerprint, ...]

    @classmethod
    def measure(cls, volumes: Sequence[StageVolume], spec: InputSpec, cache: Path) -> Fingerprint:
        """Measures the ROIs of the training cases, or reads what was measured on the same ones.

        Args:
            volumes: Prepared cases of the training fold.
            spec: The input chain; its normalisation is left out.
            cache: Folder of the cache.

        Raises:
            HnsegError: No case has a foreground voxel.
        """
        made_of = [spec.unnormalised.to_dict(), sorted(str(v.folder) for v in volumes)]
        path = cache / "fingerprints" / f"{digest(made_of)}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):  # missing or damaged: measured anew
            return cls.from_dict(json.loads(path.read_text()))
        transform = spec.unnormalised.transform()
        console = Console(stderr=True)
        cases = [
            _Case.of(volume, transform)
            for volume in track(volumes, "Measuring the training fold", console=console)
        ]
        fingerprint = cls(tuple(_combine(channel) for channel in zip(*cases, strict=True)))
        with suppress(HnsegError), replacing(path) as temporary:  # the cache may be another user's
            temporary.write_text(json.dumps(fingerprint.to_dict(), indent=1) + "\n")
        return fingerprint

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Fingerprint:
        """Reads what `to_dict` wrote."""
        return cls(
            tuple(
                ChannelFingerprint(*(tuple(one[key]) for key in ("pooled", "per_case", "overall")))  # type: ignore[arg-type]
                for one in entries["channels"]
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {"channels": [asdict(channel) for channel in self.channels]}

    @property
    def hash(self) -> str:
        """Of the constants; checkpoints carry it."""
        return digest(self.to_dict())

    def fill(self, spec: InputSpec) -> InputSpec:
        """The input chain with the constants that its normalisation lacks."""
        pairs = zip(self.channels, spec.normalise, strict=True)
        return replace(spec, normalise=tuple(channel.fill(one) for channel, one in pairs))


def needs_fingerprint(spec: InputSpec) -> bool:
    """Whether a channel's normalisation waits for constants of the training fold."""
    return any(one.missing for one in spec.normalise)


@dataclass(frozen=True)
class _Case:
    """One channel of one case: foreground values, and the moments of all voxels."""

    foreground: NDArray[np.float32]
    mean: float
    square: float

    @staticmethod
    def of(volume: StageVolume, transform: tio.Transform) -> list[_Case]:
        subject = transform(roi_subject(volume, volume.margin))
        mask = subject["label"].data[0].numpy() > 0
        cases = []
        for channel in subject["image"].data.numpy():
            values = channel[mask]
            if len(values) > _VOXELS:
                values = np.random.default_rng(0).choice(values, _VOXELS, replace=False)
            wide = channel.astype(np.float64)
            cases.append(_Case(values, float(wide.mean()), float((wide**2).mean())))
        return cases


def _combine(cases: Iterable[_Case]) -> ChannelFingerprint:
    every = list(cases)
    seen = [case.foreground for case in every if len(case.foreground)]
    if not seen:
        raise HnsegError("no training case has a labelled voxel inside the ROI; hnseg audit checks labels")
    values = np.concatenate(seen).astype(np.float64)
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in seen]) / len(seen)
    mean = float(np.average(values, weights=weights))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    lower, upper = np.quantile(values, np.array(PERCENTILES) / 100, weights=weights, method="inverted_cdf")
    per_case = np.mean([np.percentile(one, PERCENTILES) for one in seen], axis=0)
    overall = float(np.mean([case.mean for case in every]))
    variance = float(np.mean([case.square for case in every])) - overall**2
    return ChannelFingerprint(
        pooled=(float(lower), float(upper), mean, std),
        per_case=(float(per_case[0]), float(per_case[1])),
        overall=(overall, float(np.sqrt(max(variance, 0.0)))),
    )
