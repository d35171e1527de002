"""Intensity constants of the training fold.

They are measured after the stage's scaling, channel by channel, on the prepared volumes, kept beside them
and hashed into every checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torchio as tio
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track

from hnseg.card import InputSpec, Normalise, plain
from hnseg.data.cache import StageVolume
from hnseg.data.dataset import roi_subject
from hnseg.data.intensity import input_transform
from hnseg.errors import HnsegError
from hnseg.files import digest, replacing

PERCENTILES = (0.5, 99.5)
# Foreground voxels kept of one case: more than a lesion of 50 ml has at 1 mm, and a bound for the head.
_VOXELS = 100_000
# Of one channel of one case: foreground values, and the mean and mean square of all voxels.
_Channel = tuple[NDArray[np.float32], float, float]


class ChannelFingerprint(BaseModel):
    """Constants of one channel."""

    model_config = ConfigDict(frozen=True)

    # 0.5 and 99.5 % percentiles, mean and standard deviation of the foreground voxels of all cases, each case
    # of equal weight, as nnU-Net pools them (it draws equally many voxels of each).
    pooled: tuple[float, float, float, float]
    per_case: tuple[float, float]  # mean of each case's foreground 0.5 and 99.5 % percentiles (Auto3DSeg)
    overall: tuple[float, float]  # mean and standard deviation of all voxels of all ROIs

    def fill(self, normalise: Normalise) -> Normalise:
        """The same scheme with the constants it lacks."""
        known = {
            "ct": dict(zip(("lower", "upper", "mean", "std"), self.pooled, strict=True)),
            "range": dict(zip(("lower", "upper"), self.per_case, strict=True)),
            "cohort": dict(zip(("mean", "std"), self.overall, strict=True)),
        }
        missing: dict[str, Any] = {name: known[normalise.scheme][name] for name in normalise.missing}
        return replace(normalise, **missing)


class Fingerprint(BaseModel):
    """Constants of a training fold, one entry a channel."""

    model_config = ConfigDict(frozen=True)

    channels: tuple[ChannelFingerprint, ...]

    @classmethod
    def measure(cls, volumes: Sequence[StageVolume], spec: InputSpec, cache: Path) -> Fingerprint:
        """Measures the ROIs of the training cases, or reads what was measured on the same ones.

        The input chain's normalisation is left out.

        Raises:
            HnsegError: No case has a foreground voxel.
        """
        measured_on = [plain(spec.unnormalised), sorted(str(v.folder) for v in volumes)]
        path = cache / "fingerprints" / f"{digest(measured_on)}.json"
        with suppress(OSError, ValueError):  # missing or damaged: measured anew
            return cls.model_validate_json(path.read_text())
        transform = input_transform(spec.unnormalised)
        console = Console(stderr=True)
        tracked = track(volumes, "Measuring the training fold", console=console)
        cases = [_measure(volume, transform) for volume in tracked]
        fingerprint = cls(channels=tuple(_combine(channel) for channel in zip(*cases, strict=True)))
        with suppress(HnsegError), replacing(path) as temporary:  # the cache may be another user's
            temporary.write_text(fingerprint.model_dump_json(indent=1) + "\n")
        return fingerprint

    @property
    def hash(self) -> str:
        return digest(self.model_dump(mode="json"))

    def fill(self, spec: InputSpec) -> InputSpec:
        pairs = zip(self.channels, spec.normalise, strict=True)
        return replace(spec, normalise=tuple(channel.fill(scheme) for channel, scheme in pairs))


def needs_fingerprint(spec: InputSpec) -> bool:
    """Whether a channel's normalisation waits for constants of the training fold."""
    return any(scheme.missing for scheme in spec.normalise)


def _measure(volume: StageVolume, transform: tio.Transform) -> list[_Channel]:
    subject = transform(roi_subject(volume, volume.margin))
    mask, image = subject["label"].data[0].numpy() > 0, subject["image"].data.numpy()
    foreground = [channel[mask] for channel in image]
    if mask.sum() > _VOXELS:
        foreground = [np.random.default_rng(0).choice(x, _VOXELS, replace=False) for x in foreground]
    wide = image.astype(np.float64)
    return [(x, float(y.mean()), float((y**2).mean())) for x, y in zip(foreground, wide, strict=True)]


def _combine(cases: Sequence[_Channel]) -> ChannelFingerprint:
    """The constants of a channel from those of its cases."""
    foregrounds = [foreground for foreground, _, _ in cases if len(foreground)]
    if not foregrounds:
        raise HnsegError("no training case has a labelled voxel inside the ROI; hnseg audit checks labels")
    values = np.concatenate(foregrounds).astype(np.float64)
    weights = np.concatenate([np.full(len(x), 1 / len(x)) for x in foregrounds]) / len(foregrounds)
    mean = float(np.average(values, weights=weights))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    lower, upper = np.quantile(values, np.array(PERCENTILES) / 100, weights=weights, method="inverted_cdf")
    per_case = np.mean([np.percentile(x, PERCENTILES) for x in foregrounds], axis=0)
    overall = float(np.mean([mean for _, mean, _ in cases]))
    square = float(np.mean([square for _, _, square in cases]))
    return ChannelFingerprint(
        pooled=(float(lower), float(upper), mean, std),
        per_case=(float(per_case[0]), float(per_case[1])),
        overall=(overall, float(np.sqrt(max(square - overall**2, 0.0)))),
    )
