"""Where cubes lie when the coarse lesions do not fit one: boxes worked by hand, and what must always hold."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from hypothesis import given, settings
from hypothesis import strategies as st

from hnseg.imaging.grid import Grid
from hnseg.imaging.masks import centroid
from hnseg.inference.roi_cover import cover_rois, lesion_ml_outside

SPACING, EDGE = 4.0, 60.0  # a coarse lattice from the origin; cubes of 20 voxels at 3 mm


def coarse(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = (40, 40, 40)) -> sitk.Image:
    """Labels with GTVp in the first box (z, y, x) and GTVn in the others."""
    labels = np.zeros(shape, np.uint8)
    for n, box in enumerate(boxes):
        labels[box] = 1 if n == 0 else 2
    return volume(labels, (SPACING,) * 3)


def at(z: int, y: int, x: int, size: int = 3) -> tuple[slice, slice, slice]:
    return slice(z, z + size), slice(y, y + size), slice(x, x + size)


def cover(found: sitk.Image, floors: tuple[float, float] = (0.0, 0.0)) -> list[Grid]:
    return cover_rois(found, Grid.centred(centroid(found), (20, 20, 20), (3.0, 3.0, 3.0)), floors)


def test_a_cube_that_only_just_misses_is_moved_no_further_than_needed() -> None:
    """A large lesion draws the centre towards itself; 56 mm of lesions still fit the cube of 60 mm."""
    found = coarse(at(10, 10, 10, 6), at(12, 12, 22, 2))
    (cube,) = cover(found)
    # Whole voxels from 10 * 4 - 2 to 23 * 4 + 2 mm: centred on the mean (52.0 mm) the cube ends at 82 mm.
    assert cube.center[0] == pytest.approx(94 - 30, abs=0.01)
    # In y and z the mean is 50.0 mm, which is a corner: at 4k + 2 mm.
    np.testing.assert_allclose(cube.center[1:], (50, 50), atol=0.01)


def test_lesions_far_apart_have_a_cube_each_centred_on_them() -> None:
    found = coarse(at(5, 5, 5), at(5, 5, 30))
    first, second = sorted(cover(found), key=lambda cube: cube.center[0])
    # On the corner behind the mean voxel, 2 mm on.
    np.testing.assert_allclose(first.center, (26, 26, 26))
    np.testing.assert_allclose(second.center, (31 * 4 + 2, 26, 26))
    assert {first.size, second.size} == {(20, 20, 20)}
    assert {first.spacing, second.spacing} == {(3.0, 3.0, 3.0)}


def test_a_lesion_larger_than_the_cube_is_tiled_and_its_neighbour_needs_no_cube_of_its_own() -> None:
    found = coarse((slice(5, 8), slice(5, 8), slice(4, 34)), at(9, 5, 10, 2))  # 120 mm long
    tiles = cover(found)
    # 56 mm of room for voxels' centres, a quarter shared: (116 - 56) / 42 → 2 steps.
    assert [cube.center[0] for cube in tiles] == pytest.approx([44, 74, 104], abs=0.01)
    assert lesion_ml_outside(found, tiles) == 0


def test_a_speck_below_the_floor_asks_for_no_cube() -> None:
    """One voxel has 0.064 ml."""
    found = coarse(at(5, 5, 5), at(5, 5, 30, 1))
    assert len(cover(found)) == 2
    (cube,) = cover(found, (0.1, 0.1))
    assert lesion_ml_outside(found, [cube]) == pytest.approx(0.064)
    assert len(cover(found, (0.1, 0.0))) == 2


def test_outside_ml_counts_what_no_grid_holds() -> None:
    found = coarse(at(5, 5, 5), at(5, 5, 30), at(30, 5, 5, 2))
    grids = [Grid.centred(center, (20, 20, 20), (3.0, 3.0, 3.0)) for center in ((24, 24, 24), (24, 24, 30))]
    assert lesion_ml_outside(found, grids) == pytest.approx((27 + 8) * 0.064)
    # A cube whose face runs through the lesion: centres x at 120, 124 and 128 mm, face at 122 mm.
    assert lesion_ml_outside(
        found, [*grids, Grid.centred((92, 24, 24), (20,) * 3, (3.0,) * 3)]
    ) == pytest.approx((18 + 8) * 0.064)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_every_voxel_lies_whole_in_some_cube_and_no_cube_is_idle(seed: int, lesions: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((30, 30, 30), np.uint8)
    for _ in range(lesions):
        low, size = rng.integers(0, 30, 3), rng.integers(1, 22, 3) if rng.random() < 0.3 else (2, 3, 4)
        labels[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = rng.integers(1, 3)
    found = volume(labels, (SPACING,) * 3)
    grids = cover(found)
    middles = np.argwhere(labels)[:, ::-1] * SPACING
    inside = np.array([(np.abs(middles - g.center) <= EDGE / 2 - SPACING / 2 + 0.01).all(1) for g in grids])
    assert inside.any(axis=0).all()
    assert inside.any(axis=1).all()
    assert len({tuple(np.round(g.center, 3)) for g in grids}) == len(grids)
    if (np.ptp(middles, axis=0) <= EDGE - SPACING).all():
        assert len(grids) == 1
