"""A network's own spatial axes, where they are not hnseg's (z, y, x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Axes:
    """How the axes of an imported network stand to (z, y, x).

    The volume is turned before it is cut into windows, since neither MONAI's tiles nor the padding of an
    odd number of voxels are the same from both ends.

    Args:
        order: The network's axes, each as one of ours: (2, 1, 0) is a network that sees (x, y, z).
        flip: Those of the network's axes that run against ours.
    """

    order: Triple = (0, 1, 2)
    flip: tuple[int, ...] = ()

    @classmethod
    def of(cls, card: dict[str, Any]) -> Axes:
        """Those of a member; without the card's key `axes`, hnseg's own."""
        return cls(**{key: tuple(value) for key, value in card.get("axes", {}).items()})

    def to_network(self, image: Tensor) -> Tensor:
        """(B, C, z, y, x) → (B, C, *the network's axes)."""
        return image.permute(0, 1, *(2 + axis for axis in self.order)).flip([2 + axis for axis in self.flip])

    def from_network(self, logits: Tensor) -> Tensor:
        """(B, K, *the network's axes) → (B, K, z, y, x)."""
        return logits.flip([2 + axis for axis in self.flip]).permute(0, 1, *(2 + axis for axis in self._back))

    def shape_to_network(self, shape: Triple) -> Triple:
        """A patch (z, y, x) as the network has it."""
        z, y, x = (shape[axis] for axis in self.order)
        return z, y, x

    def shape_from_network(self, shape: Triple) -> Triple:
        """The network's patch as (z, y, x)."""
        z, y, x = (shape[axis] for axis in self._back)
        return z, y, x

    def axes_to_network(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of ours, for instance to mirror, by their places in the network."""
        return tuple(self._back[axis] for axis in axes)

    @property
    def _back(self) -> Triple:
        z, y, x = (self.order.index(axis) for axis in range(3))
        return z, y, x
