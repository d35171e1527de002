"""One patient's build and posture: how the anatomy of the atlas is placed in the scanner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hnseg.data.phantom.solids import Solid, Vector, vector

NECK_BASE, SKULL_BASE = -290.0, -185.0  # mm below the vertex: the neck bends between them
PIVOT = vector([0.0, 30.0, -200.0])
S = TypeVar("S", bound=Solid)


@dataclass(frozen=True)
class Patient:
    """Size and posture. The atlas is upright, in LPS mm with z = 0 at the vertex and x = 0 midline.

    Attributes:
        scale: factors along x, y, z.
        angles: head rotation about x (nod), y (tilt), z (turn) in radians.
        offset: where the atlas' origin lies in the scanner, mm.
        weight: kg.
        arms: whether the arms lie beside the body (else out of the scanner's reach).
    """

    scale: Vector
    angles: Vector
    offset: Vector
    weight: float
    arms: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, lateral_shift: float) -> Patient:
        scale = 1 + np.clip(rng.normal(0, 0.04, 3), -0.08, 0.08)
        angles = np.clip(rng.normal(0, [0.10, 0.06, 0.10]), -0.2, 0.2)
        offset = rng.normal([lateral_shift, 0, 0], [5.0, 6.0, 150.0])
        weight = 74 * scale[0] * scale[1] * scale[2] ** 2 * rng.lognormal(0, 0.12)
        return cls(scale, angles, offset, round(float(weight), 1), bool(rng.random() < 0.6))

    def place(self, solid: S) -> S:
        """A solid of the atlas, in the scanner: bent with the neck, scaled, moved.

        Solids turn rigidly, by the share of the head's rotation that belongs to the height of their centre.
        """
        share = np.clip((solid.centre[2] - NECK_BASE) / (SKULL_BASE - NECK_BASE), 0, 1)
        share = share * share * (3 - 2 * share)
        if share > 0:
            solid = solid.turned(rotation(self.angles * share), PIVOT)
        return self.lay(solid)

    def lay(self, solid: S) -> S:
        """As `place`, without the bend: for what does not move with the head."""
        centre = solid.centre * self.scale + self.offset
        return replace(solid, centre=centre, radii=solid.radii * self.scale)


def rotation(angles: Vector) -> Vector:
    """The matrix of rotations about x, then y, then z (radians)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = vector([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = vector([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = vector([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
