"""The setting to take of many that were tried on the same cases.

The best score on the cases that chose it flatters, the more so the more settings were tried. Two things guard
against it. Of the settings within one standard error of the best, the one that drops fewest components is
taken: the one-standard-error rule (Breiman, Friedman, Olshen and Stone, Classification and Regression Trees,
1984, section 3.4.3). The standard error is that of the difference from the best, for all settings are scored
on the same cases. And so chosen on some cases, it must score higher on the others than dropping nothing does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hnseg.evaluation.intervals import ratio

FOLDS, REPEATS = 5, 20


@dataclass(frozen=True)
class Trials:
    """What each setting makes of each case, in terms that add up over cases.

    Args:
        terms: (cases, settings, ratios, 2): numerators and denominators. A setting scores the mean of its
            ratios of sums over the cases; a ratio of nothing to nothing is 1, as in the official scores.
        dropped: (cases, settings) components dropped; the first setting drops none.
    """

    terms: NDArray[np.float64]
    dropped: NDArray[np.int64]

    def __getitem__(self, cases: NDArray[np.int64]) -> Trials:
        """The same for some of the cases."""
        return Trials(self.terms[cases], self.dropped[cases])

    def ratios(self, setting: int) -> NDArray[np.float64]:
        """(ratios,) of one setting over all cases."""
        return ratio(self.terms[:, setting].sum(axis=0))


@dataclass(frozen=True)
class Choice:
    """The setting taken.

    Args:
        setting: Its number.
        cross_validated: (ratios,) where each case is scored with the setting that other cases chose.
    """

    setting: int
    cross_validated: NDArray[np.float64]


def choose(trials: Trials) -> Choice:
    """Takes a setting as the module says; the first, which drops nothing, unless another proves better."""
    unbiased = cross_validate(trials)
    helps = unbiased.mean() > trials.ratios(0).mean()
    return Choice(one_standard_error(trials) if helps else 0, unbiased)


def one_standard_error(trials: Trials) -> int:
    """Of the settings within one standard error of the best, the one that drops fewest components.

    The standard errors are the jackknife's (one case left out at a time), since scores are ratios of sums.
    """
    total = trials.terms.sum(axis=0)
    scores = ratio(total).mean(axis=-1)
    best = int(scores.argmax())
    without = ratio(total - trials.terms).mean(axis=-1)  # (cases, settings)
    behind = without[:, [best]] - without
    error = np.sqrt((len(behind) - 1) * behind.var(axis=0))
    close = np.flatnonzero(scores[best] - scores <= error)
    return int(close[trials.dropped.sum(axis=0)[close].argmin()])  # between equals the first


def cross_validate(trials: Trials) -> NDArray[np.float64]:
    """(ratios,) of `one_standard_error`, chosen on four fifths of the cases and scored on the fifth left.

    Mean over repeated partitions, seeded: the same cases give the same figures.
    """
    rng, cases = np.random.default_rng(0), np.arange(len(trials.terms))
    scores = []
    for _ in range(REPEATS):
        total = np.zeros(trials.terms.shape[2:])
        for held_out in np.array_split(rng.permutation(cases), FOLDS):
            setting = one_standard_error(trials[np.setdiff1d(cases, held_out)])
            total += trials.terms[held_out, setting].sum(axis=0)
        scores.append(ratio(total))
    return np.mean(scores, axis=0)
