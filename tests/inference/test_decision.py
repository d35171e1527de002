"""From probabilities to labels: voxels worked by hand, components by scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hnseg.inference.decision import decide, remove_small

CORNERS_TOO = np.ones((3, 3, 3))


# The background has what the two classes leave: 0.4, 0.4 leaves 0.2.
@pytest.mark.parametrize(
    ("gtvp", "gtvn", "half", "argmax"),
    [
        (0.0, 0.0, 0, 0),
        (0.7, 0.2, 1, 1),
        (0.1, 0.8, 2, 2),
        (0.4, 0.3, 0, 1),  # 0.3 background: no class has half, the tumour has most
        (0.3, 0.4, 0, 2),
        (0.4, 0.1, 0, 0),  # 0.5 background
        (0.5, 0.0, 1, 0),  # half is enough, but not more than the background
        (0.5, 0.5, 1, 1),  # a tie goes to the first
        (0.375, 0.375, 0, 1),
        (0.25, 0.5, 2, 2),
    ],
)
def test_one_voxel(gtvp: float, gtvn: float, half: int, argmax: int) -> None:
    foreground = np.array([gtvp, gtvn], np.float32).reshape(2, 1, 1, 1)
    assert decide(foreground, "half").item() == half
    assert decide(foreground, "argmax").item() == argmax


def test_argmax_is_that_of_all_classes_with_the_background() -> None:
    softmax = np.random.default_rng(0).dirichlet((1, 1, 1), (4, 5, 6)).astype(np.float32)
    labels = decide(np.moveaxis(softmax, -1, 0)[1:], "argmax")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, softmax.argmax(-1))


def test_one_class_alone() -> None:
    head = np.array([0.2, 0.6], np.float32).reshape(1, 1, 1, 2)
    assert decide(head, "half").ravel().tolist() == [0, 1]
    assert decide(head, "argmax").ravel().tolist() == [0, 1]


def by_scipy(labels: np.ndarray, voxel_ml: float, min_ml: float) -> np.ndarray:
    kept = np.zeros_like(labels)
    for label in (1, 2):
        components, count = ndimage.label(labels == label, CORNERS_TOO)
        for component in range(1, count + 1):
            if (components == component).sum() * voxel_ml >= min_ml:
                kept[components == component] = label
    return kept


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.011, 0.05, 0.1, 0.5]), st.floats(0.03, 0.25))
def test_small_components_go_as_scipy_counts_them(seed: int, min_ml: float, density: float) -> None:
    drawn = np.random.default_rng(seed).choice(3, (8, 9, 10), p=(1 - 2 * density, density, density))
    labels = drawn.astype(np.uint8)
    before = labels.copy()
    np.testing.assert_array_equal(remove_small(labels, 0.01, min_ml), by_scipy(labels, 0.01, min_ml))
    np.testing.assert_array_equal(labels, before)


def test_a_component_of_exactly_the_smallest_volume_stays() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[0, 0, :5] = 1  # 5 voxels of 0.02 ml
    labels[3, 3, :4] = 2
    kept = remove_small(labels, 0.02, 0.1)
    assert (kept == 1).sum() == 5
    assert (kept == 2).sum() == 0


def test_what_touches_at_a_corner_is_one_component_but_another_class_is_not() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    labels[2, 2, 2] = 2
    kept = remove_small(labels, 1.0, 2.0)
    assert sorted(kept[kept > 0].tolist()) == [1, 1]
