"""Separable interpolation is scipy's, in every direction, and ends where ITK says an image ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from hnseg.data import resample

# scipy's names for what ITK does beyond the outermost centres.
BEYOND = {1: "nearest", 3: "mirror"}


@st.composite
def problems(draw) -> tuple[np.ndarray, list[np.ndarray]]:
    """An array (C, z, y, x) and where to sample it: finer, coarser, backwards, and across its ends."""
    sizes = draw(st.tuples(*[st.integers(4, 40)] * 3))
    values = np.random.default_rng(draw(st.integers(0, 99))).uniform(-1000, 3000, (2, *sizes))
    at = []
    for size in sizes:
        step = draw(st.floats(0.2, 3)) * draw(st.sampled_from([-1, 1]))
        at.append(draw(st.floats(-4, size + 4)) + step * np.arange(draw(st.integers(1, 50))))
    return values.astype(np.float32), at


@settings(max_examples=60, deadline=None)
@given(problem=problems(), degree=st.sampled_from([1, 3]))
def test_values_are_scipy_s_and_the_rest_is_filled(problem, degree):
    values, at = problem
    sampled = resample.interpolate(values, at, degree, -7.0)
    points = np.stack(np.meshgrid(*at, indexing="ij"))
    ends = np.array(values.shape[1:])[:, None, None, None] - 0.5
    inside = ((points >= -0.5) & (points < ends)).all(axis=0)
    for ours, single in zip(sampled, values, strict=True):
        exact = map_coordinates(single.astype(np.float64), points, order=degree, mode=BEYOND[degree])
        np.testing.assert_allclose(ours, np.where(inside, exact, -7), atol=0.005)


@pytest.mark.parametrize("degree", [1, 3])
def test_an_image_ends_half_a_voxel_below_its_first_centre_and_just_before_half_above_its_last(degree):
    values = np.ones((6, 6, 6), np.float32)
    ends = np.array([-0.5 - 1e-9, -0.5, 5.5 - 1e-9, 5.5])
    middle = np.array([2.0])
    for axis in range(3):
        at = [middle, middle, middle]
        at[axis] = ends
        np.testing.assert_allclose(
            resample.interpolate(values, at, degree, 0.0).ravel(), [0, 1, 1, 0], atol=1e-6
        )
