"""The shared resampler gives what SimpleITK gives on the whole image, and labels find their way back."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, label_image, pet_image, volume
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from hnseg.card import Sampling
from hnseg.data import resample
from hnseg.data.resample import AIR_HU, label_to_grid, sample_images, sample_label, to_grid, to_image
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


def resampled(image: sitk.Image, grid: Grid, fill: float, how: int = sitk.sitkBSpline) -> sitk.Image:
    """The reference: SimpleITK on the whole image."""
    image = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.Resample(image, grid.size, sitk.Transform(), how, grid.origin, grid.spacing, IDENTITY, fill)


def plain(image: sitk.Image, grid: Grid, how: int, fill: float) -> np.ndarray:
    return sitk.GetArrayFromImage(resampled(image, grid, fill, how))


@settings(max_examples=40, deadline=None)
@given(image=st.one_of(images(), images(angles=UPRIGHT)), grid=grids())
def test_cropping_first_changes_nothing(image, grid):
    ours = to_grid(image, grid, fill=AIR_HU)
    assert ours.dtype == np.float32
    assert ours.shape == grid.shape
    np.testing.assert_allclose(ours, plain(image, grid, sitk.sitkBSpline, AIR_HU), atol=0.01)


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


CROP = Grid.centred((40, 44, 50), (20, 18, 16), (3.0, 3.0, 3.0))
HEAD_SIZE, HEAD_SPACING = (24, 24, 20), (3.5, 3.5, 4.5)  # 84 x 84 x 90 mm: the whole fabricated scan
AUTHORS = Sampling("head_crop", "minus_one", head_size=HEAD_SIZE, head_spacing=HEAD_SPACING)


def windowed(image: sitk.Image, low: float, high: float) -> sitk.Image:
    return sitk.IntensityWindowing(image, low, high, 0.0, 1.0)


def crop_grid(ct: sitk.Image) -> Grid:
    """From the image's corner in x and y, from the top of the scan down; fabricated CTs begin at voxel 0."""
    corner = np.array(ct.GetOrigin()) - np.array(ct.GetSpacing()) / 2
    extent = np.array(HEAD_SIZE) * np.array(HEAD_SPACING)
    top = corner[2] + ct.GetSize()[2] * ct.GetSpacing()[2]
    first = np.array([corner[0], corner[1], top - extent[2]]) + np.array(HEAD_SPACING) / 2
    return Grid(HEAD_SIZE, HEAD_SPACING, tuple(float(v) for v in first))


def test_the_authors_head_crop_step_by_step():
    ct, pet = ct_image(), pet_image()
    crop = crop_grid(ct)
    hu = sitk.Round(resampled(ct, crop, -1.0))
    suv = resampled(pet, crop, -1.0)
    span = sitk.GetArrayFromImage(suv)
    unit = (suv - float(span.min())) / float(span.max() - span.min())
    expected = {
        "ct": resampled(windowed(hu, -105, 195), CROP, -1.0),
        "pet": resampled(windowed(unit, 0, 5), CROP, 0.0),  # level 2.5, width 5
    }
    for name, array in sample_images(AUTHORS, ct, pet, CROP).items():
        np.testing.assert_allclose(array, sitk.GetArrayFromImage(expected[name]), atol=1e-4)


def test_beyond_the_scan_the_study_is_air_or_the_authors_minus_one():
    far = Grid.centred((400, 400, 400), (6, 6, 6), (2.0, 2.0, 2.0))
    air = sample_images(Sampling(), ct_image(), pet_image(), far)
    assert (np.unique(air["ct"]), np.unique(air["pet"])) == ([-1024], [0])
    authors = sample_images(Sampling(outside="minus_one"), ct_image(), pet_image(), far)
    assert (np.unique(authors["ct"]), np.unique(authors["pet"])) == ([-1], [-1])


def test_labels_take_the_same_steps_as_the_images():
    label, ct = label_image(), ct_image()
    crop = crop_grid(ct)
    once = resampled(label, crop, 0.0, sitk.sitkNearestNeighbor)
    twice = sitk.GetArrayFromImage(resampled(once, CROP, 0.0, sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(sample_label(AUTHORS, label, ct, CROP), twice)
    direct = sitk.GetArrayFromImage(resampled(label, CROP, 0.0, sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(sample_label(Sampling(), label, ct, CROP), direct)
    assert direct.any()
