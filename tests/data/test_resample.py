"""The shared resampler gives what SimpleITK gives on the whole image, and labels find their way back."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, label_image, volume
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hnseg.data.resample import AIR_HU, label_to_grid, to_grid, to_image
from hnseg.imaging.grid import Grid

IDENTITY = np.eye(3).ravel().tolist()
FLIPS = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)
ORDERS = st.permutations([0, 1, 2])
# Whole hundredths: ITK cannot invert matrices with denormal numbers in them.
ANGLES = st.tuples(*[st.integers(-60, 60).map(lambda n: n / 100)] * 3)
UPRIGHT = st.just((0.0, 0.0, 0.0))


@st.composite
def images(draw, size: int = 44, angles: st.SearchStrategy = ANGLES) -> sitk.Image:
    """Noise of CT's range in any orientation, spacing and place; its middle is near the origin of space."""
    shape = [size - draw(st.integers(0, 8)) for _ in range(3)]
    values = np.random.default_rng(draw(st.integers(0, 99))).uniform(-1000, 2000, shape).astype(np.float32)
    turn = Rotation.from_rotvec(draw(angles)).as_matrix()
    direction = turn @ np.diag(draw(FLIPS))[:, draw(ORDERS)]
    image = volume(values, draw(st.tuples(*[st.floats(0.8, 3.5)] * 3)))
    image.SetDirection(direction.ravel().tolist())
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    image.SetOrigin((-np.array(middle) + draw(st.tuples(*[st.floats(-9, 9)] * 3))).tolist())
    return image


@st.composite
def grids(draw) -> Grid:
    """A small grid at most 60 mm from the origin: inside an image, across its edge or outside."""
    # The offsets keep voxels from lying half-way between two others, where nearest is anyone's choice.
    center = np.add(draw(st.tuples(*[st.floats(-60, 60)] * 3)), (0.0137, 0.0231, 0.0319))
    size = draw(st.tuples(*[st.integers(5, 12)] * 3))
    return Grid.centred(center, size, draw(st.tuples(*[st.floats(0.7, 4)] * 3)))


def plain(image: sitk.Image, grid: Grid, interpolator: int, fill: float) -> np.ndarray:
    """The reference: SimpleITK on the whole image."""
    sampled = sitk.Resample(
        image, grid.size, sitk.Transform(), interpolator, grid.origin, grid.spacing, IDENTITY, fill
    )
    return sitk.GetArrayFromImage(sampled)


@settings(max_examples=40, deadline=None)
@given(image=st.one_of(images(), images(angles=UPRIGHT)), grid=grids())
def test_cropping_first_changes_nothing(image, grid):
    ours = to_grid(image, grid, fill=AIR_HU)
    assert ours.dtype == np.float32
    assert ours.shape == grid.shape
    np.testing.assert_allclose(ours, plain(image, grid, sitk.sitkBSpline, AIR_HU), atol=0.01)


@pytest.mark.parametrize("flip", [False, True])
def test_what_lies_on_the_very_edge_of_a_scan_is_in_or_out_as_in_simpleitk(flip):
    # Grid voxels half a voxel beyond the outermost centres on every side: at indices -0.5, 0.5, ... 7.5.
    image = volume(np.full((8, 8, 8), 40, np.float32), (2, 2, 2))
    if flip:
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, -1))
        image.SetOrigin((14, 14, 14))
    grid = Grid((11, 11, 11), (2.0, 2.0, 2.0), (-3.0, -3.0, -3.0))
    ours = to_grid(image, grid, fill=AIR_HU)
    assert (ours != AIR_HU).sum() == 8**3
    np.testing.assert_array_equal(ours == AIR_HU, plain(image, grid, sitk.sitkBSpline, AIR_HU) == AIR_HU)


@settings(max_examples=25, deadline=None)
@given(image=images(), grid=grids())
def test_labels_are_simpleitk_s_nearest(image, grid):
    label = sitk.Cast(sitk.Modulus(sitk.Cast(sitk.Abs(image), sitk.sitkInt32), 3), sitk.sitkUInt8)
    ours = label_to_grid(label, grid)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, plain(label, grid, sitk.sitkNearestNeighbor, 0))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("distance", range(60, 130, 5))
def test_a_roi_that_leaves_the_scan_is_filled(distance, antialias):
    ct = ct_image()  # x, y from -1 to 79 mm
    grid = Grid.centred((distance, 40, 45), (8, 8, 8), (5.0, 5.0, 5.0))
    sampled = to_grid(ct, grid, fill=AIR_HU, antialias=antialias)
    outside = np.array(grid.origin)[0] + 5 * np.arange(8) > 79
    assert np.all(sampled[:, :, outside] == AIR_HU)
    assert np.all(sampled[:, :, ~outside] != AIR_HU)
    assert not label_to_grid(label_image(), Grid.centred((distance + 80, 40, 45), (8, 8, 8), (5, 5, 5))).any()


def test_smoothing_leaves_finer_grids_and_flat_images_alone():
    ct = ct_image()
    fine = Grid.centred((40, 40, 45), (20, 20, 20), (1.0, 1.0, 1.0))
    plain, smooth = (to_grid(ct, fine, fill=0, antialias=antialias) for antialias in (False, True))
    np.testing.assert_allclose(smooth, plain, atol=0.001)
    flat = volume(np.full((30, 30, 30), 40, np.float32), (1, 1, 1))
    coarse = Grid.centred((15, 15, 15), (4, 4, 4), (6.0, 6.0, 6.0))
    np.testing.assert_allclose(to_grid(flat, coarse, fill=0, antialias=True), 40, atol=0.01)


@settings(max_examples=10, deadline=None)
@given(flips=FLIPS, order=ORDERS)
def test_smoothing_takes_away_what_a_coarse_grid_cannot_show(flips, order):
    # Stripes of one voxel along each axis in turn, in every orientation; the mean is 500.
    stripes = np.indices((48, 48, 48)).sum(0) % 2 * 1000.0
    image = volume(stripes.astype(np.float32), (1, 1, 1))
    image.SetDirection(np.diag(flips)[:, order].ravel().tolist())
    middle = image.TransformContinuousIndexToPhysicalPoint([23.5] * 3)
    grid = Grid.centred(middle, (5, 5, 5), (6.0, 6.0, 6.0))
    np.testing.assert_allclose(to_grid(image, grid, fill=0, antialias=True), 500, atol=5)


@settings(max_examples=30, deadline=None)
@given(image=st.one_of(images(), images(angles=UPRIGHT)), grid=grids(), seed=st.integers(0, 99))
def test_the_way_back_is_simpleitk_s_linear_resampling_of_the_whole(image, grid, seed):
    maps = np.random.default_rng(seed).uniform(0, 1, (2, *grid.shape)).astype(np.float32)
    whole = np.zeros((2, *image.GetSize()[::-1]), np.float32)
    back = to_image(maps, grid, image)
    if back is not None:
        whole[(slice(None), *back[1])] = back[0]
    for ours, single in zip(whole, maps, strict=True):
        reference = sitk.Resample(grid.image(single), image, sitk.Transform(), sitk.sitkLinear, 0.0)
        np.testing.assert_allclose(ours, sitk.GetArrayFromImage(reference), atol=1e-5)
