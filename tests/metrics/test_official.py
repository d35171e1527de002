"""The official scores against examples worked by hand, MONAI, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import DiceMetric

from hnseg.metrics.lesions import Detections
from hnseg.metrics.official import CaseCounts, Overlap, aggregate, count_case

MM = (1.0, 1.0, 1.0)
label_maps = arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2))
pairs = st.tuples(label_maps, label_maps)
spacings = st.tuples(*[st.floats(0.5, 5.0)] * 3)

CUBE = (2, 6, 2, 6, 2, 6)
TWO = ((0, 2, 0, 2, 0, 2), (0, 2, 0, 2, 4, 6))
LARGE = (0, 10, 0, 10, 0, 10)
CUT = ((0, 10, 0, 10, 0, 5), (0, 10, 0, 10, 6, 10))


@pytest.mark.parametrize(
    ("prediction", "truth", "lesions", "dsc_agg"),
    [
        ([(2, 6, 2, 6, 3, 7)], [CUBE], (1, 0, 0), 96 / 128),  # shifted: intersection 48, IoU 48 / 80
        ([(0, 2, 0, 2, 0, 6)], TWO, (1, 0, 1), 32 / 40),  # one box over two lesions, IoU 8 / 24 with each
        (CUT, [LARGE], (1, 1, 0), 1800 / 1900),  # cut in two, IoU 0.5 and 0.4
        ([], [], (0, 0, 0), 1.0),
    ],
)
def test_examples_worked_by_hand(box, prediction, truth, lesions, dsc_agg):
    scores = aggregate([count_case(box(*prediction), box(*truth), MM)])
    assert (scores["tp"], scores["fp"], scores["fn"]) == lesions
    tp, fp, fn = lesions
    assert scores["gtvn_f1_agg"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if any(lesions) else 1)
    assert scores["gtvn_dsc_agg"] == pytest.approx(dsc_agg)


def test_dsc_agg_is_a_ratio_of_sums_in_cubic_millimetres(box):
    lesion = count_case(box(LARGE), box(LARGE), MM)
    assert aggregate([lesion, count_case(box(LARGE), box(), MM)])["gtvn_dsc_agg"] == pytest.approx(2 / 3)
    # 4 voxels of 0.75 mm³ predicted in excess: voxels of different patients do not weigh alike.
    coarse = count_case(box((0, 2, 0, 2, 0, 2)), box((0, 2, 0, 2, 0, 1)), (0.5, 0.5, 3.0))
    assert coarse.gtvn == Overlap(intersection=3.0, prediction=6.0, truth=3.0)
    assert aggregate([coarse, lesion])["gtvn_dsc_agg"] == pytest.approx(2006 / 2009)


def test_empty_policies(box):
    tumour = box((0, 2, 0, 2, 0, 2), label=1)
    double = box(*TWO, label=1)  # Dice with `tumour`: 2 × 8 / 24
    sides = [(double, tumour), (box(), tumour), (tumour, box()), (box(), box())]
    counts = [count_case(*pair, MM) for pair in sides]
    expected = {"one": (2 / 3 + 1) / 4, "zero": (2 / 3) / 4, "skip": (2 / 3) / 3}
    for policy, score in expected.items():
        scores = aggregate(counts, empty=policy)
        assert scores["gtvp_dsc"] == pytest.approx(score)
        assert scores["gtvp_dsc_by_empty_policy"] == pytest.approx(expected)
        assert (scores["gtvp_both_empty"], scores["gtvn_both_empty"], scores["cases"]) == (1, 4, 4)
        assert scores["gtvn_dsc_agg"] == scores["gtvn_f1_agg"] == 1.0


def test_score_of_2026_is_a_mean_over_patients_and_classes(box):
    counts = [
        CaseCounts(Overlap(4, 8, 8), Overlap(8, 8, 8), Detections(1, 0, 0)),  # Dice 0.5 and 1
        CaseCounts(Overlap(0, 8, 8), Overlap(0, 0, 0), Detections(0, 0, 0)),  # Dice 0 and both empty
    ]
    for policy, score in {"one": (0.75 + 0.5) / 2, "zero": 0.75 / 2, "skip": 0.75 / 2}.items():
        assert aggregate(counts, empty=policy)["segmentation_score_2026"] == pytest.approx(score)
    scores = aggregate([count_case(box(), box(), MM)], empty="skip")
    assert scores["gtvp_dsc"] is scores["segmentation_score_2026"] is None


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_monais(random_pair, seed):
    pair = random_pair(seed)
    one_hot = [torch.from_numpy(np.stack([labels == c for c in (0, 1, 2)])[None]) for labels in pair]
    expected = DiceMetric(include_background=False)(*one_hot)[0].tolist()
    counts = count_case(*pair, (0.98, 0.98, 3.0))
    assert [counts.gtvp.dice, counts.gtvn.dice] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(pairs, spacings)
def test_dice_is_symmetric_and_false_and_missed_change_roles(pair, spacing):
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
    assert aggregate(random.sample(counts, len(counts))) == aggregate(counts)
