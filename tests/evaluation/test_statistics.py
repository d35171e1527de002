"""Intervals beside SciPy's and the textbook's formula, the paired test beside SciPy's, ranks by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scored import cohort, patient

from hnseg.evaluation.statistics import (
    Interval,
    borda_ranks,
    compare,
    holm,
    permutation_p,
    score_intervals,
    score_terms,
)
from hnseg.metrics.official import SCORES, CaseCounts, Overlap, aggregate


def official(cases):
    return aggregate(case.counts for case in cases)


def test_the_interval_of_a_mean_is_the_textbooks_bootstrap_t():
    cases = cohort(1, 60)
    dice = np.array([case.counts.gtvp.dice for case in cases])
    drawn = dice[np.random.default_rng(3).integers(60, size=(400, 60))]
    t = (drawn.mean(axis=1) - dice.mean()) / (drawn.std(axis=1, ddof=1) / np.sqrt(60))
    low, high = dice.mean() - np.quantile(t, [0.975, 0.025]) * dice.std(ddof=1) / np.sqrt(60)
    interval = score_intervals(cases, resamples=400, seed=3)["gtvp_dsc"]
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_intervals_are_those_of_a_bootstrap_t_with_the_jackknifes_errors(score):
    """Resampled and left out patient by patient, scored by `aggregate`: no ratio, no linearisation."""
    cases = cohort(2, 40)

    def estimate(chosen):
        left_out = [official(chosen[:i] + chosen[i + 1 :])[score] for i in range(len(chosen))]
        return official(chosen)[score], np.sqrt(39 * np.var(left_out))

    value, error = estimate(cases)
    drawn = np.random.default_rng(0).integers(40, size=(150, 40))
    resampled = np.array([estimate([cases[i] for i in indices]) for indices in drawn])
    t = (resampled[:, 0] - value) / resampled[:, 1]
    low, high = value - np.quantile(t, [0.975, 0.025]) * error
    interval = score_intervals(cases, resamples=150)[score]
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_the_seed_alone_decides_and_the_unit_of_volume_does_not_matter():
    cases = cohort(5, 60)

    def in_ml(overlap):
        return Overlap(overlap.intersection / 1000, overlap.prediction / 1000, overlap.truth / 1000)

    counts = [CaseCounts(in_ml(c.counts.gtvp), in_ml(c.counts.gtvn), c.counts.lesions) for c in cases]
    small = [replace(case, counts=count) for case, count in zip(cases, counts, strict=True)]
    first, again, other = (score_intervals(cases, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    for score, theirs in score_intervals(small, resamples=200, seed=1).items():
        assert (first[score].low, first[score].high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


ODD = patient("A-x", gtvp=(0, 100, 100), gtvn=(0, 100, 100), lesions=(0, 1, 1))


@pytest.mark.parametrize(
    ("cases", "note"),
    [
        (cohort(7, 50), ""),
        (cohort(7, 49), "interval too narrow: fewer than 50 patients (49)"),
        ([patient("A-1")], "no interval: fewer than 5 patients (1)"),
        ([patient(f"A-{i}") for i in range(60)], "no interval: too few patients differ"),
        ([ODD, *(patient(f"A-{i}") for i in range(99))], "no interval: too few patients differ"),
    ],
)
def test_small_or_uniform_cohorts_are_labelled(cases, note):
    for interval in score_intervals(cases).values():
        assert interval.note == note
        assert (interval.low is None) == (interval.high is None) == note.startswith("no interval")


def test_scores_that_rest_on_no_patient():
    empty = [patient(f"A-{i}", gtvp=(0, 0, 0), gtvn=(0, 0, 0)) for i in range(60)]
    intervals = score_intervals(empty, empty="skip")
    assert intervals["gtvp_dsc"] == Interval(None, note="no patient to score")
    assert intervals["gtvn_dsc_agg"] == Interval(1.0, note="no interval: fewer than 5 patients (0)")


@pytest.mark.parametrize("score", SCORES)
def test_few_patients_are_exchanged_in_every_way_as_scipy_does(score):
    arms = cohort(0, 8), cohort(1, 8)
    both = [*arms[0], *arms[1]]

    def difference(first, second):
        scores = (official([both[int(i)] for i in indices])[score] for indices in (first, second))
        return next(scores) - next(scores)

    theirs = stats.permutation_test(
        (np.arange(8), np.arange(8, 16)),
        difference,
        permutation_type="samples",
        vectorized=False,
        n_resamples=np.inf,
    )
    ours = compare(*arms, resamples=300)[score]
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.difference.value == pytest.approx(theirs.statistic)


@pytest.mark.parametrize("score", SCORES)
def test_random_exchanges_agree_with_all_of_them(score):
    terms = np.stack([score_terms(cohort(seed, 12), "one")[score] for seed in (2, 3)], axis=1)
    exact = permutation_p(terms, 2**12)
    drawn = permutation_p(terms, 500)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 500) + 1 / 501)


def test_a_clear_difference_among_many_gets_the_least_p_there_is():
    arm = [patient(f"A-{i}") for i in range(60)]
    worse = [patient(f"A-{i}", gtvp=(40 + i / 10, 100, 100)) for i in range(60)]
    found = compare(arm, worse, resamples=999)
    assert found["gtvp_dsc"].p == 1 / 1000
    assert found["gtvp_dsc"].difference.low > 0
    assert found["gtvn_f1_agg"].p == 1


def test_the_mean_differences_interval_is_that_of_the_patients_differences():
    arm, baseline = cohort(4, 60), cohort(5, 60)
    gain = np.array([a.counts.gtvp.dice - b.counts.gtvp.dice for a, b in zip(arm, baseline, strict=True)])
    drawn = gain[np.random.default_rng(0).integers(60, size=(500, 60))]
    t = (drawn.mean(axis=1) - gain.mean()) / drawn.std(axis=1)
    low, high = gain.mean() - np.quantile(t, [0.975, 0.025]) * gain.std()
    ours = compare(arm, baseline, resamples=500)["gtvp_dsc"].difference
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-9)


def test_arms_exchanged_change_the_sign_alone():
    arm, baseline = cohort(6, 60), cohort(7, 60)
    there, back = compare(arm, baseline, resamples=500), compare(baseline, arm, resamples=500)
    for score in SCORES:
        ours, theirs = there[score].difference, back[score].difference
        expected = (-theirs.value, -theirs.high, -theirs.low)
        assert (ours.value, ours.low, ours.high) == pytest.approx(expected, abs=1e-9)
        assert there[score].p == back[score].p


def test_an_arm_does_not_differ_from_itself():
    for comparison in compare(cohort(8, 60), cohort(8, 60)).values():
        assert (comparison.difference.value, comparison.difference.low) == (0, None)
        assert comparison.difference.note == "no interval: too few patients differ"
        assert comparison.p == 1


def test_holms_adjustment_by_hand():
    # Ascending: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, which may not fall below its forerunner.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        # GTVp: a 1, b 2, c 3, d 4. DSCagg: d 1, b 2, a 3, c 4. F1agg: b 1, a and d 2.5, c 4.
        # Nodes: b 3, d 3.5, a 5.5, c 8, so b 1, d 2, a 3, c 4. Sums: a 4, b 3, c 7, d 6.
        (
            {"a": (0.8, 0.6, 0.5), "b": (0.7, 0.7, 0.6), "c": (0.6, 0.5, 0.4), "d": (0.5, 0.8, 0.5)},
            {"b": 1, "a": 2, "d": 3, "c": 4},
        ),
        # a is better on the tumour, b on the nodes: ties share their mean rank.
        (
            {"a": (0.8, 0.6, 0.5), "b": (0.7, 0.7, 0.6), "c": (0.6, 0.5, 0.4)},
            {"a": 1.5, "b": 1.5, "c": 3},
        ),
    ],
)
def test_borda_ranks_by_hand(scores, ranks):
    arms = {arm: dict(zip(SCORES, values, strict=False)) for arm, values in scores.items()}
    assert borda_ranks(arms) == ranks
