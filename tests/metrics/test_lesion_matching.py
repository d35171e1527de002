"""Lesion detection against hand-worked examples, scipy's components and naive loops."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from hnseg.metrics.lesions import label_lesions, match, overlapping_lesions

STRUCTURE = {6: 1, 18: 2, 26: 3}


def detections(prediction, truth, matching="greedy", connectivity=26, threshold=0.30):
    return tuple(match(overlapping_lesions(prediction == 2, truth == 2, connectivity), matching, threshold))


def naive_iou(prediction, truth, connectivity):
    """IoU of every true lesion (rows) with every predicted one, by scipy and one mask at a time."""
    structure = ndimage.generate_binary_structure(3, STRUCTURE[connectivity])
    true, true_count = ndimage.label(truth == 2, structure)
    predicted, predicted_count = ndimage.label(prediction == 2, structure)
    iou = np.zeros((true_count, predicted_count))
    for g, p in np.ndindex(*iou.shape):
        a, b = true == g + 1, predicted == p + 1
        iou[g, p] = (a & b).sum() / (a | b).sum()
    return iou


def naive_greedy(iou, threshold):
    iou, tp = iou.copy(), 0
    while iou.size and iou.max() > threshold:
        g, p = np.unravel_index(iou.argmax(), iou.shape)
        iou[g], iou[:, p] = 0, 0
        tp += 1
    return tp


def most_pairs(iou, threshold):
    """Size of a maximum matching, by Hopcroft and Karp."""
    return int((maximum_bipartite_matching(csr_array(iou > threshold)) >= 0).sum())


def test_one_box_over_two_cubes(box):
    truth, prediction = box((0, 2, 0, 2, 0, 2), (0, 2, 0, 2, 4, 6)), box((0, 2, 0, 2, 0, 6))
    assert overlapping_lesions(prediction == 2, truth == 2).iou == pytest.approx([1 / 3, 1 / 3])
    assert detections(prediction, truth, "hungarian") == (1, 0, 1)
    assert detections(prediction, truth, "group") == (1, 0, 0)  # group IoU 16 / 24


@pytest.mark.parametrize(("touching", "counts"), [("corner", (1, 2, 2)), ("edge", (1, 1, 2))])
def test_connectivity(box, touching, counts):
    z = 4 if touching == "corner" else 3
    two = box((3, 4, 3, 4, 3, 4), (z, z + 1, 4, 5, 4, 5)) == 2
    assert tuple(label_lesions(two, connectivity)[1] for connectivity in (26, 18, 6)) == counts


def test_iou_of_exactly_the_threshold_is_not_enough(box):
    truth, prediction = box((0, 1, 0, 1, 0, 10)), box((0, 1, 0, 1, 0, 3))
    assert overlapping_lesions(prediction == 2, truth == 2).iou.tolist() == [0.3]
    assert detections(prediction, truth) == (0, 1, 1)
    assert detections(prediction, truth, "hungarian") == (0, 1, 1)
    assert detections(prediction, truth, "group") == (1, 0, 0)


def test_hungarian_finds_a_pair_that_greedy_blocks(box):
    truth = box((0, 1, 0, 1, 0, 10), (0, 1, 0, 1, 11, 14))
    prediction = box((0, 1, 0, 1, 0, 3), (0, 1, 0, 1, 4, 14))
    iou = overlapping_lesions(prediction == 2, truth == 2).iou
    assert iou == pytest.approx([3 / 10, 6 / 14, 3 / 10])
    # The best pair, 6/14, takes the first true and the second predicted lesion, which both others need.
    assert detections(prediction, truth, "greedy", threshold=0.25) == (1, 1, 1)
    assert detections(prediction, truth, "hungarian", threshold=0.25) == (2, 0, 0)


@pytest.mark.parametrize("matching", ["greedy", "hungarian", "group"])
def test_lesions_without_overlap_are_false_and_missed(box, matching):
    nothing, lesion, two = box(), box((0, 2, 0, 2, 0, 2)), box((8, 9, 8, 9, 8, 9), (12, 14, 12, 14, 12, 14))
    assert detections(two, lesion, matching) == (0, 2, 1)
    assert detections(nothing, nothing, matching) == (0, 0, 0)
    assert detections(lesion, nothing, matching) == (0, 1, 0)
    assert detections(nothing, lesion, matching) == (0, 0, 1)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("seed", range(8))
def test_random_label_maps_agree_with_naive_loops(random_pair, seed, connectivity):
    prediction, truth = random_pair(seed)
    for threshold in (0.05, 0.30):
        iou = naive_iou(prediction, truth, connectivity)
        for matching, expected in (("greedy", naive_greedy), ("hungarian", most_pairs)):
            tp = expected(iou, threshold)
            found = detections(prediction, truth, matching, connectivity, threshold)
            assert found == (tp, iou.shape[1] - tp, iou.shape[0] - tp)
