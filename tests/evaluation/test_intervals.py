"""Bootstrap intervals of the official scores, beside SciPy's and beside the textbook's formula."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scored import cohort, patient

from hnseg.evaluation.statistics import SCORES, score_intervals
from hnseg.metrics import aggregate


def official(cases):
    return aggregate(case.counts for case in cases)


def test_scores_are_the_official_ones_and_lie_within():
    cases = cohort(0, 80)
    for score, interval in score_intervals(cases, resamples=500).items():
        assert interval.value == official(cases)[score]
        assert 0 <= interval.low < interval.value < interval.high <= 1
        assert interval.note == ""


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


@pytest.mark.parametrize("score", SCORES)
def test_scipys_bootstrap_agrees_in_a_large_cohort(score):
    cases = cohort(4, 400)

    def of_indices(indices):
        return official([cases[int(i)] for i in indices])[score]

    theirs = stats.bootstrap(
        (np.arange(400),), of_indices, vectorized=False, n_resamples=400, method="BCa", rng=0
    ).confidence_interval
    ours = score_intervals(cases)[score]
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.15 * width)


def test_the_seed_alone_decides():
    cases = cohort(5, 60)
    first, again, other = (score_intervals(cases, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_unit_of_volume_does_not_matter():
    cases = cohort(6, 60)

    def in_ml(overlap):
        return replace(
            overlap,
            **{name: getattr(overlap, name) / 1000 for name in ("intersection", "prediction", "truth")},
        )

    small = [
        replace(c, counts=replace(c.counts, gtvp=in_ml(c.counts.gtvp), gtvn=in_ml(c.counts.gtvn)))
        for c in cases
    ]
    pairs = zip(score_intervals(cases).values(), score_intervals(small).values(), strict=True)
    for ours, theirs in pairs:
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


@pytest.mark.parametrize(("patients", "note"), [(49, "optimistic: fewer than 50 patients (49)"), (50, "")])
def test_small_cohorts_are_labelled(patients, note):
    assert {interval.note for interval in score_intervals(cohort(7, patients)).values()} == {note}


def test_one_patient_has_no_interval():
    for interval in score_intervals([patient("A-1")]).values():
        assert interval.low is interval.high is None
        assert interval.note == "no interval: fewer than 5 patients (1)"


def test_patients_all_alike_have_no_interval():
    for interval in score_intervals([patient(f"A-{i}") for i in range(60)]).values():
        assert interval.low is interval.high is None
        assert interval.note == "no interval: too few patients differ"


def test_no_node_anywhere_is_said():
    cases = [
        replace(case, counts=replace(case.counts, gtvn=patient("A", gtvn=(0, 0, 0)).counts.gtvn))
        for case in cohort(8, 60)
    ]
    interval = score_intervals(cases)["gtvn_dsc_agg"]
    assert (interval.value, interval.low, interval.high) == (1.0, None, None)
    assert interval.note == "no interval: fewer than 5 patients (0)"


def test_a_mean_over_no_patient_is_said():
    cases = [patient(f"A-{i}", gtvp=(0, 0, 0)) for i in range(60)]
    interval = score_intervals(cases, empty="skip")["gtvp_dsc"]
    assert (interval.value, interval.low, interval.note) == (None, None, "no patient to score")


def test_a_single_patient_that_differs_makes_no_interval():
    odd = patient("A-x", gtvp=(0, 100, 100), gtvn=(0, 100, 100), lesions=(0, 1, 1))
    for interval in score_intervals([patient(f"A-{i}") for i in range(99)] + [odd]).values():
        assert interval.low is interval.high is None
        assert interval.note == "no interval: too few patients differ"
