"""Primary tumours at the pharynx and nodes along the neck chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hnseg.data.phantom.anatomy import MUSCLE, Part, Patient, Triple, rotation
from hnseg.data.phantom.solids import Blob, Vector, vector

GTVP, GTVN = 1, 2

# The 680 training cases of HECKTOR 2025: how many have which labels, and volumes in ml at the percentiles 0,
# 5, 25, 50, 75, 95, 100, measured in the paper authors' crops. The two extremes are assumptions.
PRESENCE: tuple[tuple[tuple[int, ...], int], ...] = (((GTVP, GTVN), 575), ((GTVP,), 77), ((GTVN,), 28))
PERCENTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
VOLUMES = {GTVP: (0.9, 1.5, 4, 8, 17, 40, 60), GTVN: (0.5, 1, 5, 13, 24, 50, 75)}
MOST_NODES = 13
SMALLEST = {GTVP: 0.8, GTVN: 0.35}  # ml

# How lesions look. The contrast to muscle is smaller than the noise of one voxel.
CONTRAST = (18.0, 25.0)  # HU
UPTAKE = (4.0, 12.0)  # SUV
RIM, CORE = 0.33, 0.73  # uptake of the infiltrating rim against the core, and the core's share of the radius
NECROTIC = {GTVP: 0.15, GTVN: 0.3}  # of those thicker than 18 mm

# Where primaries arise (atlas, mm; off-midline sites on either side) and how often.
SITES: tuple[tuple[Triple, float], ...] = (
    ((19, -11, -191), 0.42),  # tonsil
    ((7, -24, -207), 0.28),  # base of tongue
    ((9, 1, -161), 0.10),  # nasopharynx
    ((13, 2, -232), 0.11),  # hypopharynx
    ((8, -14, -250), 0.09),  # larynx
)
# Left neck chains from top to bottom (atlas, mm) and how often a node lies there.
CHAINS: tuple[tuple[Triple, Triple, float], ...] = (
    ((38, -2, -196), (38, 0, -218), 0.34),  # II A
    ((42, 20, -192), (42, 20, -220), 0.16),  # II B
    ((37, 4, -224), (36, 4, -246), 0.25),  # III
    ((34, 8, -250), (34, 10, -274), 0.12),  # IV
    ((45, 32, -215), (47, 34, -262), 0.13),  # V
)


@dataclass(frozen=True)
class Lesion:
    """One tumour or node: its class, its shape in the scanner, and what to paint for it."""

    label: int
    solid: Blob
    parts: tuple[Part, ...]


def draw_lesions(patient: Patient, rng: np.random.Generator) -> list[Lesion]:
    """The patient's lesions, nodes first: where a node meets a primary, the primary lies on top."""
    classes, counts = zip(*PRESENCE, strict=True)
    present = classes[int(rng.choice(len(classes), p=vector(counts) / sum(counts)))]
    placed: list[Blob] = []
    side = int(rng.choice([-1, 1]))
    if GTVP in present:
        for volume in _shares(rng, GTVP, 1 + int(rng.random() < 0.06)):
            placed.append(_settle(rng, volume, placed, lambda radius: _primary_site(rng, radius, side)))
    primaries = len(placed)
    if GTVN in present:
        for volume in _shares(rng, GTVN, min(int(rng.geometric(0.36)), MOST_NODES)):
            placed.append(_settle(rng, volume, placed, lambda radius: _node_site(rng, radius, side)))
    lesions = [_lesion(patient, rng, GTVN, blob) for blob in placed[primaries:]]
    return lesions + [_lesion(patient, rng, GTVP, blob) for blob in placed[:primaries]]


def _shares(rng: np.random.Generator, label: int, count: int) -> Vector:
    """The class's volume in this patient (ml), shared among at most `count` lesions, largest first."""
    total = float(np.exp(np.interp(rng.random(), PERCENTILES, np.log(VOLUMES[label]))))
    smallest = SMALLEST[label]
    count = max(1, min(count, int(total / smallest)))
    return np.sort(smallest + (total - count * smallest) * rng.dirichlet(np.full(count, 0.8)))[::-1]


def _primary_site(rng: np.random.Generator, radius: float, side: int) -> Vector:
    """A point in the pharyngeal wall; large tumours reach outwards rather than across."""
    points, shares = zip(*SITES, strict=True)
    point = vector(points[int(rng.choice(len(points), p=shares))]) + rng.normal(0, 2.5, 3)
    point[0] += 0.3 * max(radius - 8, 0)
    return point * [side, 1, 1]


def _node_site(rng: np.random.Generator, radius: float, side: int) -> Vector:
    """A point on a neck chain, more often on the tumour's side; large nodes bulge outwards."""
    tops, bottoms, shares = zip(*CHAINS, strict=True)
    chain = int(rng.choice(len(shares), p=shares))
    point = vector(tops[chain]) + rng.random() * (vector(bottoms[chain]) - vector(tops[chain]))
    point = point + rng.normal(0, 2.0, 3)
    point[0] += 0.8 * max(radius - 9, 0)
    return point * [side if rng.random() < 0.72 else -side, 1, 1]


def _settle(
    rng: np.random.Generator, volume: float, placed: list[Blob], site: Callable[[float], Vector]
) -> Blob:
    """A lesion of `volume` ml at the first drawn site that is free, or at the freest of forty."""
    radius = float(np.cbrt(volume * 1000 * 3 / (4 * np.pi)))
    best, widest = vector([0, 0, 0]), -np.inf
    for _ in range(40):
        point = site(radius)
        gaps = [np.linalg.norm(point - b.centre) - radius - np.cbrt(b.radii.prod()) for b in placed]
        gap = min(gaps, default=np.inf)
        if gap > widest:
            best, widest = point, gap
        if widest > 4:
            break
    return _shape(rng, best, radius)


def _shape(rng: np.random.Generator, centre: Vector, radius: float) -> Blob:
    """An irregular blob with the volume of a sphere of `radius` mm, turned at random."""
    radii = np.exp(rng.normal(0, 0.13, 3)) * [1, 1, 1.15]
    waves = np.column_stack(
        [rng.normal(0, 0.06, 6), rng.normal(0, 2.6, (6, 3)), rng.uniform(0, 2 * np.pi, 6)]
    )
    blob = Blob(centre, radii, axes=rotation(rng.normal(0, 0.4, 3)), waves=waves)
    return blob.grown(radius / np.cbrt(blob.volume() * 3 / (4 * np.pi)))


def _lesion(patient: Patient, rng: np.random.Generator, label: int, blob: Blob) -> Lesion:
    """Places a blob, keeping its volume, and draws its contrast, uptake and necrosis."""
    solid = patient.place(blob)
    solid = solid.grown(float(np.cbrt(blob.radii.prod() / solid.radii.prod())))
    hu = MUSCLE + rng.uniform(*CONTRAST)
    suv = float(np.exp(rng.uniform(*np.log(UPTAKE))))
    parts = [Part("lesion", solid, hu, RIM * suv), Part("lesion", solid.grown(CORE), hu, suv)]
    if rng.random() < NECROTIC[label] and np.cbrt(solid.radii.prod()) > 9:
        parts.append(Part("necrosis", solid.grown(0.55), MUSCLE - 15, min(1.5, suv)))
    return Lesion(label, solid, tuple(parts))
