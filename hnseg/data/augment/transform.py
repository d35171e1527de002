"""What random transforms have in common: samples, named random streams, drawing apart from applying."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnseg.data.patch import Patch, Position


class Streams(NamedTuple):
    """The random streams of one sample: each decision draws from its own, by name.

    A stream follows from seed, number and name alone, so that a further decision moves no other.
    """

    seed: int  # of the training
    number: int  # of the sample, counted over all epochs

    def __call__(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, zlib.crc32(name.encode())])


@dataclass
class Sample:
    """What transforms change: a scan (CT in HU, then PET in SUV), or a patch of normalised channels.

    DataLoader and Lightning move it to pinned memory and to the device.
    """

    case_id: str
    image: Tensor  # (C, z, y, x) float; transforms write into it
    label: Tensor  # (z, y, x) uint8
    streams: Streams  # that transforms draw from
    classes: int  # the largest label, so that no transform must read it from the device
    position: Position | None = None  # of its voxels in the ROI (`hnseg.data.patch`), with coordinates
    patch: Patch | None = None  # that the first transform cuts from the volume, if it does

    def to(self, device: torch.device, non_blocking: bool = True) -> Sample:
        image, label = (data.to(device, non_blocking=non_blocking) for data in (self.image, self.label))
        return replace(self, image=image, label=label)

    def pin_memory(self) -> Sample:
        return replace(self, image=self.image.pin_memory(), label=self.label.pin_memory())


@dataclass(kw_only=True)
class Transform(ABC):
    """Draws parameters for a sample, and changes samples by given parameters.

    Args:
        p: Probability that it acts on a sample.
    """

    p: float = 1.0

    @abstractmethod
    def draw(self, rng: np.random.Generator, channels: int) -> Any:
        """Parameters for one sample with this many channels."""

    @abstractmethod
    def apply(self, samples: Sequence[Sample], parameters: Sequence[Any]) -> None:
        """Changes each sample by its parameters, on the device where it lies."""


class Compose:
    """Transforms one after another, each drawing from its own stream.

    Args:
        transforms: By name, in their order; `RandomAffine` first where it turns patches in surroundings.
        device: Where they run: `cpu` in the loaders' processes, `cuda` on the device that trains.
    """

    def __init__(self, transforms: Mapping[str, Transform], device: Literal["cpu", "cuda"] = "cpu") -> None:
        self.transforms, self.device = dict(transforms), device

    def __call__(self, samples: Sequence[Sample], scope: str = "augment") -> None:
        """Changes a batch of samples; the stream of a transform is named `scope.transform`."""
        for name, transform in self.transforms.items():
            stream = f"{scope}.{name}"
            drawn = [transform.draw(sample.streams(stream), len(sample.image)) for sample in samples]
            transform.apply(samples, drawn)
