"""Grids lie where the rules of the paper put them, worked by hand, whatever the image's orientation."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hnseg.imaging import masks
from hnseg.imaging.grid import (
    body_center,
    bounds,
    coarse_grid,
    nearest_corner,
    top_of_scan_grid,
)

# Ten of the 48 ways of storing the same voxels: every order of the axes, and all signs.
ORIENTATIONS = [
    "".join(letters) for order in permutations(("LR", "AP", "IS")) for letters in product(*order)
][::5]


def rotation(degrees: float, axis: int) -> np.ndarray:
    """Turn about x, y or z."""
    return Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()


def body_ct(**table: int) -> sitk.Image:
    """512 x 512 x 600 mm of air with a body that fills x 80-304, y 96-256 mm, and perhaps a table."""
    hu = np.full((75, 64, 64), -1000, np.float32)
    hu[:, 12:32, 10:38] = 40
    if table:
        hu[:, 32 + table["gap"] : 32 + table["gap"] + table["thickness"], :] = 300
    # Voxel (0, 0, 0) reaches from the origin of patient space.
    return volume(hu, (8, 8, 8), (4, 4, 4))


def head_mask() -> sitk.Image:
    """Box of x 20-180, y 40-240, z 100-340 mm, and a smaller stray far away."""
    mask = np.zeros((50, 40, 40), np.uint8)
    mask[10:34, 4:24, 2:18] = 1
    mask[44:48, 34:38, 34:38] = 1
    return volume(mask, (10, 10, 10), (5, 5, 5))


def test_the_coarse_roi_hangs_seventy_percent_up_the_head():
    grid = coarse_grid(head_mask(), (144, 144, 144), (2, 2, 2))
    low, high = grid.corners.min(0), grid.corners.max(0)
    # Top face: 100 + 0.7 * (340 - 100) = 268; 288 mm down from there; centred on (100, 140) in x and y.
    np.testing.assert_allclose(high, [244, 284, 268])
    np.testing.assert_allclose(low, [-44, -4, -20])


def test_the_head_crop_hangs_from_the_top_of_the_scan_centred_on_the_body():
    grid = top_of_scan_grid(body_ct(), (256, 256, 128), (2, 2, 3))
    low, high = grid.corners.min(0), grid.corners.max(0)
    assert high[2] == pytest.approx(600)
    assert low[2] == pytest.approx(600 - 384)
    np.testing.assert_allclose(grid.center[:2], [192, 176])


@pytest.mark.parametrize("gap", [0, 2])
def test_a_table_does_not_shift_the_body(gap):
    plain = body_center(body_ct(), 384)
    tabled = body_center(body_ct(gap=gap, thickness=2), 384)
    # Where the table touches, partial volume may cost half a lattice step.
    np.testing.assert_allclose(tabled, plain, atol=8 if gap == 0 else 1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_halfway_between_two_corners_the_storage_does_not_decide(orientation):
    image = volume(np.zeros((5, 5, 5), np.uint8), (1, 2, 3), (100, 200, 300))
    turned = sitk.DICOMOrient(image, orientation)
    middle = np.array([102.0, 204.0, 306.0])  # of voxel (2, 2, 2)
    np.testing.assert_allclose(nearest_corner(turned, middle), [102.5, 205, 307.5], atol=1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_grids_do_not_depend_on_how_the_voxels_are_stored(orientation):
    ct, mask = body_ct(gap=2, thickness=2), head_mask()
    turned_ct, turned_mask = sitk.DICOMOrient(ct, orientation), sitk.DICOMOrient(mask, orientation)
    pairs = [
        (top_of_scan_grid(i, (64, 64, 48), (8, 8, 8)) for i in (ct, turned_ct)),
        (top_of_scan_grid(i, (48, 48, 48), (6, 6, 6)) for i in (ct, turned_ct)),
        (coarse_grid(i, (144, 144, 144), (2, 2, 2)) for i in (mask, turned_mask)),
    ]
    for plain, turned in pairs:
        np.testing.assert_allclose(turned.origin, plain.origin, atol=1e-6)
    np.testing.assert_allclose(masks.centroid(turned_mask), masks.centroid(mask), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    degrees=st.floats(-180, 180),
    axis=st.integers(0, 2),
    size=st.tuples(*[st.integers(2, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
)
def test_bounds_hold_every_voxel_of_an_oblique_image_and_no_more(degrees, axis, size, spacing):
    image = sitk.Image(*size, sitk.sitkUInt8)
    image.SetSpacing(spacing)
    image.SetOrigin((3, -20, 70))
    image.SetDirection(rotation(degrees, axis).ravel().tolist())
    steps = [np.arange(2 * n + 1) / 2 - 0.5 for n in size]  # faces and centres of all voxels
    points = np.stack(np.meshgrid(*steps), -1).reshape(-1, 3) * spacing
    points = points @ rotation(degrees, axis).T + (3, -20, 70)
    low, high = bounds(image)
    np.testing.assert_allclose(low, points.min(0), atol=1e-6)
    np.testing.assert_allclose(high, points.max(0), atol=1e-6)
