"""Made-up cohorts of scored patients: skewed as HECKTOR's, with errors that go together within a patient.

Volumes and how often a class is absent follow the challenge's 680 training cases (ml, 5/25/50/75/95
percentiles: GTVp 1.5/4/8/17/40, GTVn 1/5/13/24/50; 4 % without GTVp, 11 % without GTVn, up to 13 nodes); the
errors were chosen so that the scores come near the paper's Table 7 (0.73/0.73/0.73). Small lesions are missed
more often, some tumours altogether, and a hard patient is hard for every arm and both classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from hnseg.evaluation.score import CaseScore
from hnseg.metrics.lesions import Detections
from hnseg.metrics.official import CaseCounts, Overlap

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_NODES = 13
MM3 = 1000.0  # per ml


@dataclass(frozen=True)
class Arm:
    """What one arm got from each patient: volumes (patients, 3) as in `Overlap`, lesions (patients, 3)."""

    gtvp: Array
    gtvn: Array
    lesions: Ints

    def cases(self) -> list[CaseScore]:
        """The same as `hnseg evaluate` has it."""
        rows = zip(self.gtvp.tolist(), self.gtvn.tolist(), self.lesions.tolist(), strict=True)
        return [
            CaseScore(f"P-{i:04}", "P", CaseCounts(Overlap(*p), Overlap(*n), Detections(*k)), {}, {})
            for i, (p, n, k) in enumerate(rows)
        ]

    def scores(self) -> Array:
        """(4,) scores in the order of `hnseg.metrics.official.SCORES`, both empty counting 1."""
        gtvp, gtvn = _dice(self.gtvp), _dice(self.gtvn)
        tp, fp, fn = self.lesions.sum(axis=0)
        intersection, prediction, truth = self.gtvn.sum(axis=0)
        dsc_agg = 2 * intersection / (prediction + truth)
        return np.array([gtvp.mean(), dsc_agg, 2 * tp / (2 * tp + fp + fn), (gtvp + gtvn).mean() / 2])


def draw_arms(rng: np.random.Generator, patients: int, arms: int = 1) -> list[Arm]:
    """Draw patients, and exchangeable arms that err independently on each of them."""
    hard = rng.standard_normal(patients)
    tumour = np.where(rng.random(patients) < 0.04, 0, 8 * np.exp(rng.normal(0, 1.07, patients)))
    count = np.minimum(1 + rng.negative_binomial(1, 0.45, patients), MOST_NODES)
    count[rng.random(patients) < 0.11] = 0
    nodes = rng.gamma(0.75, 11.5, (patients, MOST_NODES)) * (np.arange(MOST_NODES) < count[:, None])
    return [_draw_arm(rng, hard, tumour, nodes) for _ in range(arms)]


def _draw_arm(rng: np.random.Generator, hard: Array, tumour: Array, nodes: Array) -> Arm:
    error = 0.7 * hard + 0.7 * rng.standard_normal(len(hard))
    seen = (tumour > 0) & (rng.random(len(hard)) > 0.06 * np.exp(0.5 * error))
    gtvp = _overlap(rng, tumour, seen, quality=1.9 - 0.8 * error + 0.3 * np.log(np.maximum(tumour, 0.1) / 8))
    # A tumour where there is none, and one beside a tumour that was missed.
    gtvp[:, 1] += np.where(~seen & (rng.random(len(hard)) < 0.4), rng.lognormal(1, 1, len(hard)), 0)

    found = nodes > 0
    found &= rng.random(nodes.shape) < expit(
        1.6 - 0.8 * error[:, None] + 0.5 * np.log(np.maximum(nodes, 0.01) / 5)
    )
    gtvn = _overlap(rng, nodes, found, quality=1.7 - 0.5 * error[:, None])
    false = rng.poisson(0.4 * np.exp(0.6 * error))
    gtvn[:, 1] += np.where(false > 0, rng.gamma(np.maximum(false, 1) * 0.6, 4), 0)
    hits = found.sum(axis=1)
    lesions = np.stack([hits, false, (nodes > 0).sum(axis=1) - hits], axis=1)
    return Arm(gtvp * MM3, gtvn * MM3, lesions)


def _overlap(rng: np.random.Generator, truth: Array, found: NDArray[np.bool_], quality: Array) -> Array:
    """(patients, 3) ml of intersection, prediction and truth: Dice `expit(quality)` of each found lesion."""
    prediction = np.where(found, truth * rng.lognormal(0, 0.25, truth.shape), 0)
    quality = quality + rng.normal(0, 0.4, truth.shape)
    wanted = expit(quality) * (prediction + truth) / 2
    intersection = np.where(found, np.minimum(wanted, np.minimum(prediction, truth)), 0)
    volumes = np.stack([intersection, prediction, truth], axis=1)
    return volumes if truth.ndim == 1 else volumes.sum(axis=2)


def _dice(volumes: Array) -> Array:
    intersection, prediction, truth = volumes.T
    both = prediction + truth
    return np.divide(2 * intersection, both, out=np.ones_like(both), where=both > 0)
