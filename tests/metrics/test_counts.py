"""The official scores against the worked examples of the specification, MONAI, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import DiceMetric

from hnseg.metrics import CaseCounts, Detections, Overlap, aggregate, count_case

MM = (1.0, 1.0, 1.0)
label_maps = arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2))
pairs = st.tuples(label_maps, label_maps)
spacings = st.tuples(*[st.floats(0.5, 5.0)] * 3)


def test_shifted_cube(box):  # example 1
    scores = aggregate([count_case(box((2, 6, 2, 6, 3, 7)), box((2, 6, 2, 6, 2, 6)), MM)])
    assert scores["gtvn_dsc_agg"] == 0.75
    assert scores["gtvn_f1_agg"] == 1.0


def test_one_box_over_two_cubes(box):  # example 2
    truth = box((0, 2, 0, 2, 0, 2), (0, 2, 0, 2, 4, 6))
    scores = aggregate([count_case(box((0, 2, 0, 2, 0, 6)), truth, MM)])
    assert (scores["tp"], scores["fp"], scores["fn"]) == (1, 0, 1)
    assert scores["gtvn_f1_agg"] == pytest.approx(2 / 3)


def test_cube_cut_in_two(box):  # example 3
    prediction = box((0, 10, 0, 10, 0, 5), (0, 10, 0, 10, 6, 10))
    scores = aggregate([count_case(prediction, box((0, 10, 0, 10, 0, 10)), MM)])
    assert (scores["tp"], scores["fp"], scores["fn"]) == (1, 1, 0)
    assert scores["gtvn_f1_agg"] == pytest.approx(2 / 3)


def test_dsc_agg_is_a_ratio_of_sums(box):  # example 4
    lesion = box((0, 10, 0, 10, 0, 10))
    scores = aggregate([count_case(lesion, lesion, MM), count_case(lesion, box(), MM)])
    assert scores["gtvn_dsc_agg"] == pytest.approx(2000 / 3000)


def test_connectivity_changes_the_lesions(box):  # example 5
    corner = box((3, 4, 3, 4, 3, 4), (4, 5, 4, 5, 4, 5))
    assert count_case(corner, corner, MM).lesions == (1, 0, 0)
    assert count_case(corner, corner, MM, connectivity=6).lesions == (2, 0, 0)


def test_volumes_are_in_cubic_millimetres(box):
    coarse = count_case(box((0, 2, 0, 2, 0, 2)), box((0, 2, 0, 2, 0, 1)), (0.5, 0.5, 3.0))
    assert coarse.gtvn == Overlap(intersection=3.0, prediction=6.0, truth=3.0)
    # A miss of 4 × 0.75 mm³ beside a hit of 1000 mm³: voxels of different patients do not weigh alike.
    lesion = box((0, 10, 0, 10, 0, 10))
    assert aggregate([coarse, count_case(lesion, lesion, MM)])["gtvn_dsc_agg"] == pytest.approx(2006 / 2009)


def test_empty_policies(box):
    tumour = box((0, 2, 0, 2, 0, 2), label=1)
    half = box((0, 2, 0, 2, 0, 2), (0, 2, 0, 2, 4, 6), label=1)  # Dice with `tumour`: 2 × 8 / 24
    counts = [
        count_case(half, tumour, MM),
        count_case(box(), tumour, MM),
        count_case(tumour, box(), MM),
        count_case(box(), box(), MM),
    ]
    expected = {"one": (2 / 3 + 1) / 4, "zero": (2 / 3) / 4, "skip": (2 / 3) / 3}
    for policy, score in expected.items():
        scores = aggregate(counts, empty=policy)
        assert scores["gtvp_dsc"] == pytest.approx(score)
        assert scores["gtvp_dsc_by_empty_policy"] == pytest.approx(expected)
        assert (scores["gtvp_both_empty"], scores["gtvn_both_empty"], scores["cases"]) == (1, 4, 4)
        assert scores["gtvn_dsc_agg"] == scores["gtvn_f1_agg"] == 1.0


def test_score_of_2026_is_a_mean_over_patients_and_classes():
    counts = [
        CaseCounts(Overlap(4, 8, 8), Overlap(8, 8, 8), Detections(1, 0, 0)),  # Dice 0.5 and 1
        CaseCounts(Overlap(0, 8, 8), Overlap(0, 0, 0), Detections(0, 0, 0)),  # Dice 0 and both empty
    ]
    for policy, score in {"one": (0.75 + 0.5) / 2, "zero": 0.75 / 2, "skip": 0.75 / 2}.items():
        assert aggregate(counts, empty=policy)["segmentation_score_2026"] == pytest.approx(score)


def test_nothing_to_average_is_none(box):
    scores = aggregate([count_case(box(), box(), MM)], empty="skip")
    assert scores["gtvp_dsc"] is None
    assert scores["segmentation_score_2026"] is None


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(2, 2, 3\)"):
        count_case(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), MM)


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_monais(random_pair, seed):
    prediction, truth = random_pair(seed)
    one_hot = [
        torch.from_numpy(np.stack([labels == c for c in (0, 1, 2)])[None]) for labels in (prediction, truth)
    ]
    gtvp, gtvn = DiceMetric(include_background=False)(*one_hot)[0].tolist()
    counts = count_case(prediction, truth, (0.98, 0.98, 3.0))
    assert counts.gtvp.dice == pytest.approx(gtvp, abs=1e-6)
    assert counts.gtvn.dice == pytest.approx(gtvn, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(pairs, spacings)
def test_dice_is_symmetric_and_bounded(pair, spacing):
    forward, backward = count_case(*pair, spacing), count_case(*reversed(pair), spacing)
    for name in ("gtvp", "gtvn"):
        dice = getattr(forward, name).dice
        assert dice == getattr(backward, name).dice
        assert dice is None or 0 <= dice <= 1
    tp, fp, fn = forward.lesions
    assert backward.lesions == (tp, fn, fp)


@settings(max_examples=50, deadline=None)
@given(label_maps)
def test_a_perfect_prediction_scores_one(labels):
    scores = aggregate([count_case(labels, labels, MM)])
    assert scores["gtvp_dsc"] == scores["gtvn_dsc_agg"] == scores["gtvn_f1_agg"] == 1.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(pairs, spacings), min_size=1, max_size=5), st.randoms())
def test_the_order_of_patients_does_not_matter(patients, random):
    counts = [count_case(*pair, spacing) for pair, spacing in patients]
    shuffled = random.sample(counts, len(counts))
    assert aggregate(shuffled) == aggregate(counts)


@settings(max_examples=50, deadline=None)
@given(pairs, st.sampled_from([6, 18, 26]), st.floats(0.0, 0.9))
def test_hungarian_finds_at_least_what_greedy_finds(pair, connectivity, threshold):
    greedy, hungarian = (
        count_case(*pair, MM, connectivity=connectivity, matching=matching, threshold=threshold).lesions
        for matching in ("greedy", "hungarian")
    )
    assert hungarian.tp >= greedy.tp
    assert hungarian.tp + hungarian.fn == greedy.tp + greedy.fn
    assert hungarian.tp + hungarian.fp == greedy.tp + greedy.fp
