"""Which setting is taken of many that were tried on the same cases."""

import numpy as np
import pytest
from scipy import stats

from hnseg.evaluation.tuning import Trials, choose, cross_validate, one_standard_error


def of_means(scores: np.ndarray, dropped: np.ndarray | None = None) -> Trials:
    """Settings whose score is the mean of the cases', (cases, settings); each drops one more."""
    terms = np.stack([scores, np.ones_like(scores)], axis=-1)[:, :, None]
    if dropped is None:
        dropped = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return Trials(terms, np.asarray(dropped))


def test_what_helps_every_case_is_taken_and_worth_the_same_on_others() -> None:
    trials = of_means(np.tile([0.5, 0.6, 0.6, 0.4], (12, 1)))
    choice = choose(trials)
    assert choice.setting == 1  # 2 is as good and drops more
    assert choice.cross_validated == pytest.approx(0.6)


def test_of_equals_the_one_that_drops_least_is_taken_wherever_it_stands() -> None:
    trials = of_means(np.tile([0.5, 0.6, 0.6], (12, 1)), np.tile([0, 9, 3], (12, 1)))
    assert choose(trials).setting == 2


@pytest.mark.parametrize(("gap", "taken"), [(0.98, 0), (1.02, 1)])
def test_one_standard_error_of_the_paired_difference(gap: float, taken: int) -> None:
    """Against scipy's standard error of the mean of the cases' differences."""
    rng = np.random.default_rng(3)
    base, noise = rng.uniform(0.2, 0.9, 30), rng.normal(0, 0.05, 30)
    gain = noise - noise.mean()
    gain += gap * stats.sem(gain)
    assert one_standard_error(of_means(np.stack([base, base + gain], axis=1))) == taken


@pytest.mark.parametrize(("gap", "taken"), [(0.98, 0), (1.02, 1)])
def test_the_same_for_a_ratio_of_sums(gap: float, taken: int) -> None:
    """Against the jackknife written out (Efron and Stein 1981): one case left out at a time."""
    rng = np.random.default_rng(4)
    bottom = rng.uniform(1, 50, 25)
    top = bottom * np.stack([rng.uniform(0.4, 0.6, 25), rng.uniform(0.4, 0.6, 25)])

    def difference(cases: np.ndarray) -> float:
        return float((top[1, cases].sum() - top[0, cases].sum()) / bottom[cases].sum())

    cases = np.arange(25)
    without = np.array([difference(np.delete(cases, n)) for n in cases])
    error = np.sqrt(24 / 25 * ((without - without.mean()) ** 2).sum())
    # Lifting each ratio alike lifts that of the sums as much, and leaves the error as it is.
    top[1] += bottom * (gap * error - difference(cases))
    terms = np.stack([top.T, np.stack([bottom, bottom], axis=1)], axis=-1)[:, :, None]
    trials = Trials(terms, np.tile([0, 1], (25, 1)))
    assert one_standard_error(trials) == taken


def test_a_score_is_the_mean_of_its_ratios() -> None:
    """Setting 1 lifts the first ratio by 0.2 and costs the second 0.1; setting 2 costs it 0.3."""
    first, second = np.array([0.5, 0.7, 0.7]), np.array([0.8, 0.7, 0.5])
    terms = np.stack([np.stack([first, np.ones(3)], -1), np.stack([second, np.ones(3)], -1)], axis=1)
    trials = Trials(np.tile(terms, (10, 1, 1, 1)), np.tile([0, 1, 2], (10, 1)))
    choice = choose(trials)
    assert choice.setting == 1
    assert choice.cross_validated == pytest.approx([0.7, 0.7])


def test_nothing_to_find_and_nothing_found_is_a_score_of_one() -> None:
    """As in the official scores: the first setting finds what is not there, the second drops it."""
    terms = np.tile([[[0.0, 8.0]], [[0.0, 0.0]]], (10, 1, 1, 1))
    choice = choose(Trials(terms, np.tile([0, 1], (10, 1))))
    assert choice.setting == 1
    assert choice.cross_validated == pytest.approx(1)


def test_noise_is_not_taken_for_help() -> None:
    """Thirty settings that only scatter: the best looks good on the cases that chose it, and no others."""
    rng, apparent, unbiased, taken = np.random.default_rng(5), [], [], []
    for _ in range(20):
        scores = np.concatenate([np.full((60, 1), 0.6), 0.6 + rng.normal(0, 0.1, (60, 30))], axis=1)
        trials = of_means(scores)
        apparent.append(scores.mean(axis=0).max())
        unbiased.append(float(cross_validate(trials)[0]))
        taken.append(choose(trials).setting)
    assert np.mean(apparent) > 0.62
    assert abs(np.mean(unbiased) - 0.6) < 0.01
    assert np.mean(np.array(taken) == 0) >= 0.5
    assert cross_validate(trials) == cross_validate(trials)  # the same cases, the same figures
