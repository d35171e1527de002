"""From probabilities to labels: voxels worked by hand."""

import numpy as np
import pytest

from hnseg.card import Decision
from hnseg.inference.decision import decide

CLASSES = ("GTVp", "GTVn")


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
    assert decide(foreground, Decision(rule="half"), CLASSES).item() == half
    assert decide(foreground, Decision(rule="argmax"), CLASSES).item() == argmax


def test_argmax_is_that_of_all_classes_with_the_background() -> None:
    softmax = np.random.default_rng(0).dirichlet((1, 1, 1), (4, 5, 6)).astype(np.float32)
    labels = decide(np.moveaxis(softmax, -1, 0)[1:], Decision(rule="argmax"), CLASSES)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, softmax.argmax(-1))


@pytest.mark.parametrize(
    ("gtvp", "gtvn", "bar_p", "bar_n", "label"),
    [
        (0.6, 0.1, 0.6, 0.0, 1),  # a class that just reaches its bar counts
        (0.6, 0.1, 0.7, 0.0, 0),  # it does not, and the background's 0.3 is more than 0.1
        (0.45, 0.35, 0.5, 0.0, 2),  # GTVp is out; GTVn has more than the background's 0.2
        (0.45, 0.35, 0.5, 0.4, 0),  # both are out
        (0.45, 0.2, 0.5, 0.0, 0),  # GTVp is out; GTVn has less than the background's 0.35
        (0.3, 0.4, 0.0, 0.3, 2),  # a bar below what argmax asks for changes nothing
        (0.2, 0.1, 0.1, 0.1, 0),
    ],
)
def test_a_class_below_its_threshold_is_out_of_the_vote(
    gtvp: float, gtvn: float, bar_p: float, bar_n: float, label: int
) -> None:
    foreground = np.array([gtvp, gtvn], np.float32).reshape(2, 1, 1, 1)
    rules = Decision(rule="argmax", thresholds={"GTVp": bar_p, "GTVn": bar_n})
    assert decide(foreground, rules, ["GTVp", "GTVn"]).item() == label


def test_thresholds_go_by_the_names_of_classes_and_are_not_read_under_half() -> None:
    foreground = np.array([0.6, 0.1], np.float32).reshape(2, 1, 1, 1)
    bars = {"GTVp": 0.7}
    assert decide(foreground, Decision(rule="argmax", thresholds=bars), ["GTVp", "GTVn"]).item() == 0
    assert decide(foreground, Decision(rule="argmax", thresholds=bars), ["GTVn", "GTVp"]).item() == 1
    assert decide(foreground, Decision(rule="half", thresholds=bars), ["GTVp", "GTVn"]).item() == 1
