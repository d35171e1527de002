"""One patient's build and posture, and the healthy body as an ordered list of solids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hnseg.data.phantom.solids import Solid, Vector, rod, vector

NECK_BASE, SKULL_BASE = -290.0, -185.0  # mm below the vertex: the neck bends between them
PIVOT = vector([0.0, 30.0, -200.0])
S = TypeVar("S", bound=Solid)


@dataclass(frozen=True)
class Patient:
    """Size and posture. The atlas is upright, in LPS mm with z = 0 at the vertex and x = 0 midline.

    Attributes:
        scale: Factors along x, y, z.
        angles: Head rotation about x (nod), y (tilt), z (turn) in radians.
        offset: Where the atlas' origin lies in the scanner, mm.
        weight: kg.
        arms: Whether the arms lie beside the body (else out of the scanner's reach).
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
        """A solid that does not move with the head, in the scanner: scaled and moved."""
        return replace(solid, centre=solid.centre * self.scale + self.offset, radii=solid.radii * self.scale)


def rotation(angles: Vector) -> Vector:
    """The matrix of rotations about x, then y, then z (radians)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = vector([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = vector([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = vector([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


AIR, LUNG, FAT, WATER, MUSCLE, BRAIN, BONE, CORTEX = -1000.0, -780.0, -95.0, 10.0, 50.0, 36.0, 350.0, 900.0

Triple = tuple[float, float, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A solid in the scanner with its CT number (HU) and its uptake (SUV)."""

    name: str
    solid: Solid
    hu: float
    suv: float


# name, centre, radii (mm), flatness, HU, SUV range. Left-sided x means: mirrored to the right as well.
Row = tuple[str, Triple, Triple, int, float, Range]

# Fat first, then muscle, so that neighbouring pieces join without a seam.
FAT_OUTLINE: list[Row] = [
    ("thigh", (85, 25, -1200), (78, 82, 240), 2, FAT, (0.3, 0.3)),
    ("torso", (0, 20, -660), (168, 116, 370), 3, FAT, (0.3, 0.4)),
    ("neck", (0, 14, -215), (59, 61, 60), 2, FAT, (0.3, 0.4)),
    ("neck", (0, 16, -275), (64, 63, 55), 2, FAT, (0.3, 0.4)),
    ("scalp", (0, 10, -77), (78, 97, 77), 0, FAT, (0.3, 0.4)),
    ("face", (0, -38, -136), (61, 61, 84), 0, FAT, (0.3, 0.4)),
    ("jaw", (0, -36, -190), (54, 52, 34), 0, FAT, (0.3, 0.4)),
]
MUSCLE_OUTLINE: list[Row] = [
    ("thigh", (85, 25, -1200), (64, 68, 240), 2, MUSCLE, (0.6, 0.9)),
    ("torso", (0, 20, -660), (148, 96, 368), 3, MUSCLE, (0.7, 1.0)),
    ("neck", (0, 14, -215), (53, 55, 58), 2, MUSCLE, (0.8, 1.1)),
    ("neck", (0, 16, -275), (57, 56, 57), 2, MUSCLE, (0.8, 1.1)),
    ("face", (0, -34, -142), (55, 56, 74), 0, MUSCLE, (0.8, 1.1)),
    ("jaw", (0, -34, -190), (47, 46, 28), 0, MUSCLE, (0.8, 1.1)),
    ("nape", (0, 40, -140), (56, 52, 42), 0, MUSCLE, (0.8, 1.1)),
]

TORSO: list[Row] = [
    ("bowel", (0, -15, -770), (115, 55, 110), 1, 30.0, (1.0, 2.2)),
    ("lung", (72, 18, -425), (56, 74, 112), 0, LUNG, (0.3, 0.5)),
    ("heart", (25, -22, -485), (48, 44, 48), 0, 40.0, (1.5, 9.0)),
    ("heart", (25, -22, -485), (34, 31, 34), 0, 40.0, (1.4, 1.9)),
    ("liver", (-62, 0, -585), (78, 74, 58), 0, 58.0, (1.8, 2.8)),
    ("spleen", (95, 45, -590), (32, 42, 40), 0, 50.0, (1.5, 2.2)),
    ("kidney", (58, 62, -670), (27, 25, 50), 0, 35.0, (2.5, 8.0)),
    ("pelvis", (85, 40, -925), (38, 14, 58), 0, BONE, (0.9, 1.3)),
    ("bladder", (0, -5, -960), (38, 36, 34), 0, WATER, (12.0, 40.0)),
    ("femur", (88, 22, -1190), (15, 15, 215), 2, CORTEX, (0.4, 0.6)),
]

HEAD: list[Row] = [
    ("skull", (0, 10, -75), (72, 91, 70), 0, CORTEX, (0.6, 0.9)),
    ("brain", (0, 10, -75), (66, 85, 63), 0, BRAIN, (6.0, 13.0)),
    ("white matter", (0, 10, -75), (46, 62, 42), 0, BRAIN - 6, (3.0, 5.0)),
    ("cerebellum", (0, 48, -118), (44, 30, 22), 0, BRAIN, (4.0, 9.0)),
    ("eye", (32, -70, -112), (13, 13, 13), 0, WATER, (0.8, 1.2)),
    ("maxillary sinus", (28, -60, -150), (12, 14, 15), 0, AIR, (0.2, 0.3)),
    ("nasal cavity", (0, -55, -148), (11, 34, 20), 0, AIR, (0.2, 0.3)),
    ("palate", (0, -55, -174), (27, 26, 4), 0, BONE, (0.8, 1.2)),
    ("mouth", (0, -50, -179), (18, 24, 2.5), 0, AIR, (0.8, 1.2)),
    ("tongue", (0, -44, -199), (24, 31, 18), 0, MUSCLE, (1.0, 2.2)),
]

MUCOSA: list[Row] = [
    ("nasopharynx wall", (0, -7, -158), (18, 13, 19), 0, MUSCLE, (3.5, 7.5)),
    ("oropharynx wall", (0, -8, -192), (19, 13, 26), 1, MUSCLE, (3.5, 7.5)),
    ("hypopharynx wall", (0, -6, -235), (15, 12, 28), 1, MUSCLE, (3.5, 7.5)),
]

# Sites of physiological uptake: their CT is that of muscle.
GLANDS: list[Row] = [
    ("adenoid", (0, 5, -158), (14, 6, 10), 0, MUSCLE, (4.0, 8.0)),
    ("soft palate", (0, -23, -178), (14, 9, 6), 0, MUSCLE, (4.0, 8.0)),
    ("palatine tonsil", (20, -11, -191), (8.5, 10, 14), 0, MUSCLE, (5.0, 12.0)),
    ("lingual tonsil", (0, -25, -209), (16, 8, 9), 0, MUSCLE, (4.5, 11.0)),
    ("parotid gland", (50, -2, -176), (12, 17, 25), 0, MUSCLE, (2.5, 6.0)),
    ("submandibular gland", (31, -35, -214), (10, 14, 12), 0, MUSCLE, (4.0, 8.0)),
    ("sublingual gland", (13, -58, -212), (6, 14, 6), 0, MUSCLE, (3.5, 7.0)),
    ("larynx", (8, -14, -251), (6, 11, 7), 0, MUSCLE, (3.0, 10.0)),
    ("thyroid gland", (17, -8, -278), (8, 9, 18), 0, MUSCLE, (1.2, 5.0)),
    ("neck muscle", (44, 22, -235), (7, 12, 34), 0, MUSCLE, (1.0, 3.5)),
]

AIRWAY: list[Row] = [
    ("nasopharynx", (0, -9, -158), (12, 8, 15), 0, AIR, (0.5, 0.8)),
    ("oropharynx", (0, -9, -191), (12, 7, 22), 1, AIR, (0.5, 0.8)),
    ("hypopharynx", (0, -9, -232), (8, 6, 22), 1, AIR, (0.5, 0.8)),
    ("trachea", (0, -6, -315), (8.5, 8.5, 62), 2, AIR, (0.5, 0.8)),
]

RODS: list[tuple[str, Triple, Triple, float, float]] = [
    ("mandible", (49, -8, -160), (46, -14, -200), 6.5, CORTEX),
    ("mandible", (46, -14, -200), (30, -54, -212), 6.5, CORTEX),
    ("mandible", (30, -54, -212), (0, -76, -214), 7, CORTEX),
    ("hyoid", (18, -20, -228), (0, -36, -230), 2.5, BONE),
    ("clavicle", (18, -42, -318), (140, 0, -312), 6, BONE),
    ("humerus", (178, 25, -330), (205, 35, -600), 12, CORTEX),
]
SHOULDERS = [((50, 28, -325), (172, 28, -345), 46.0), ((40, 28, -305), (110, 30, -330), 34.0)]
ARMS = [((185, 28, -350), (212, 38, -620), 44.0), ((212, 38, -620), (205, 5, -880), 36.0)]


def chin_height(patient: Patient) -> float:
    """Patient z (mm) of the mandible's lower edge at the chin."""
    _, _, end, radius, _ = RODS[2]
    chin = patient.place(Solid(vector(end), vector([radius] * 3)))
    return float(chin.centre[2] - chin.radii[2])


def build(patient: Patient, lumps: Sequence[Solid], rng: np.random.Generator) -> list[Part]:
    """The patient's body without its lesions, from the outline inwards.

    Args:
        patient: build and posture.
        lumps: lesions in the scanner, which push muscle, fat and skin outwards.
        rng: draws sizes, places and uptake.
    """
    parts = [*_limbs(patient, FAT, 0), *_tissue(patient, FAT_OUTLINE, rng)]
    parts += [Part("lump", lump.grown(margin=9), FAT, 0.3) for lump in lumps]
    parts += [*_limbs(patient, MUSCLE, 9), *_tissue(patient, MUSCLE_OUTLINE, rng)]
    parts += [Part("lump", lump.grown(margin=4), MUSCLE, 0.9) for lump in lumps]
    parts += _tissue(patient, [*TORSO, *HEAD, *MUCOSA], rng)
    parts += _tissue(patient, GLANDS, rng, jitter=1.5)
    parts += _spine(patient)
    parts += _rods(patient)
    return parts + _tissue(patient, AIRWAY, rng, jitter=0.8)


def table(patient: Patient) -> list[Part]:
    """The couch: foam in a thin shell under the patient, flat whatever the head does."""
    slab = patient.lay(Solid(vector([0, 154, -600]), vector([220, 15, 1200]), flatness=3))
    return [Part("table", slab, -200.0, 0.0), Part("table", slab.grown(margin=-3), -900.0, 0.0)]


def _limbs(patient: Patient, hu: float, inset: float) -> list[Part]:
    """Shoulders, and arms where they lie beside the body; their radii are smaller by `inset` mm."""
    return [
        Part("limb", solid, hu, 0.3 if hu == FAT else 0.8)
        for start, end, radius in SHOULDERS + (ARMS if patient.arms else [])
        for solid in _both_sides(patient, start, end, radius - inset)
    ]


def _rods(patient: Patient) -> list[Part]:
    return [
        Part(name, solid, hu, 0.8)
        for name, start, end, radius, hu in RODS
        if patient.arms or name != "humerus"
        for solid in _both_sides(patient, start, end, radius)
    ]


def _tissue(patient: Patient, rows: list[Row], rng: np.random.Generator, jitter: float = 0.0) -> list[Part]:
    """Solids of a table, off-midline ones mirrored; `jitter` (mm) moves and resizes each side on its own."""
    parts = []
    for name, centre, radii, flatness, hu, (low, high) in rows:
        suv = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        mirrored = centre[0] != 0 and name not in ("heart", "liver", "spleen")
        for side in (1, -1) if mirrored else (1,):
            middle = vector(centre) * [side, 1, 1] + rng.normal(0, 1, 3) * jitter
            size = vector(radii) * np.exp(rng.normal(0, 0.08, 3) * (jitter > 0))
            solid = patient.place(Solid(middle, size, flatness))
            parts.append(Part(name, solid, hu, suv * float(np.exp(rng.normal(0, 0.12)))))
    return parts


def _spine(patient: Patient) -> Iterator[Part]:
    """Vertebrae from the axis to the sacrum, alternating with discs, and the canal behind them."""
    heights = np.concatenate([np.full(7, 17.0), np.full(12, 23.0), np.full(6, 33.0)])
    tops = -165.0 - np.concatenate([[0], np.cumsum(heights)[:-1]])
    widths = np.interp(tops, [-700, -300, -165], [24, 14, 11])
    for top, height, width in zip(tops, heights, widths, strict=True):
        middle, back = top - height / 2, 34.0 + 0.9 * (width - 11)
        disc = Solid(vector([0, back, top]), vector([width, 0.8 * width, 0.25 * height]), 1)
        bone = Solid(vector([0, back, middle]), vector([width, 0.8 * width, 0.36 * height]), 2)
        arch = Solid(vector([0, back + 1.8 * width, middle]), vector([1.5 * width, width, 0.3 * height]), 1)
        canal = Solid(vector([0, back + 1.35 * width, middle]), vector([8, 7, 0.55 * height]), 2)
        for name, solid, hu, suv in (
            ("disc", disc, 80.0, 0.8),
            ("vertebra", bone, BONE, 1.3),
            ("vertebra", arch, BONE, 1.2),
            ("spinal canal", canal, 28.0, 1.4),
        ):
            yield Part(name, patient.place(solid), hu, suv)


def _both_sides(patient: Patient, start: Triple, end: Triple, radius: float) -> Iterator[Solid]:
    """A rod of the atlas' left side and its mirror image."""
    for side in (1, -1):
        yield patient.place(rod((side * start[0], *start[1:]), (side * end[0], *end[1:]), radius))
