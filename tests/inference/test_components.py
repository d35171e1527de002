"""Which components stay: volumes by scipy, uptake by hand."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from hypothesis import given, settings
from hypothesis import strategies as st
from members import rotation
from scipy import ndimage

from hnseg.inference.decision import remove_faint, remove_small, uptake


def suv_peak(component: sitk.Image, pet: sitk.Image) -> float | None:
    suv = uptake(component, pet)
    return None if suv is None else suv.peak


CORNERS_TOO = np.ones((3, 3, 3))


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
    np.testing.assert_array_equal(
        remove_small(labels, 0.01, [min_ml, min_ml]), by_scipy(labels, 0.01, min_ml)
    )
    np.testing.assert_array_equal(labels, before)


def test_each_class_has_its_own_floor() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[0, 0, :3] = 1
    labels[3, 3, :3] = 2
    kept = remove_small(labels, 0.1, [0.2, 0.5])
    assert set(np.unique(kept)) == {0, 1}


def pet_with(spots: dict[tuple[int, int, int], float], spacing: tuple[float, ...] = (4, 4, 4)) -> sitk.Image:
    """SUV 0 but for voxels (z, y, x); 12 x 12 x 12 of them from the origin."""
    values = np.zeros((12, 12, 12), np.float32)
    for index, suv in spots.items():
        values[index] = suv
    return volume(values, spacing)


def block(low: tuple[float, ...], high: tuple[float, ...]) -> sitk.Image:
    """A mask of 1 mm voxels from the origin, 48 a side, set between two points (x, y, z) in mm."""
    mask = np.zeros((48, 48, 48), np.uint8)
    mask[tuple(slice(int(a), int(b) + 1) for a, b in zip(low[::-1], high[::-1], strict=True))] = 1
    return volume(mask, (1, 1, 1))


def test_suv_peak_of_one_hot_voxel() -> None:
    """Within 6.2 mm of a voxel's centre at 4 mm lie itself, 6 face and 12 edge neighbours (5.7 mm): 19."""
    pet = pet_with({(5, 5, 5): 38.0})
    assert suv_peak(block((20, 20, 20), (20, 20, 20)), pet) == pytest.approx(38 / 19)
    # One voxel beside it, whose sphere holds the hot one; three beside it, whose sphere does not.
    assert suv_peak(block((24, 20, 20), (24, 20, 20)), pet) == pytest.approx(38 / 19)
    assert suv_peak(block((32, 20, 20), (32, 20, 20)), pet) == 0


def test_suv_peak_takes_the_hottest_sphere_with_its_centre_inside() -> None:
    """Two hot voxels 8 mm apart: the one between them has both in its sphere, their own have one."""
    pet = pet_with({(5, 5, 4): 38.0, (5, 5, 6): 19.0})
    assert suv_peak(block((14, 20, 20), (26, 20, 20)), pet) == pytest.approx(57 / 19)
    assert suv_peak(block((23, 20, 20), (26, 20, 20)), pet) == pytest.approx(19 / 19)


def test_suv_peak_counts_what_the_sphere_holds_along_each_axis() -> None:
    """At 4 x 4 x 6 mm (x, y, z): 9 in the plane (5.7 mm), and the 2 right above and below (6 mm)."""
    pet = pet_with({(5, 5, 5): 22.0}, (4, 4, 6))
    assert suv_peak(block((20, 20, 30), (20, 20, 30)), pet) == pytest.approx(22 / 11)


def test_a_component_smaller_than_a_pet_voxel_takes_the_nearest_voxel() -> None:
    pet = pet_with({(5, 5, 5): 38.0})
    assert suv_peak(block((21, 21, 21), (21, 21, 21)), pet) == pytest.approx(38 / 19)


def test_a_component_beside_the_pet_has_no_peak_and_stays() -> None:
    pet = pet_with({(5, 5, 5): 38.0})
    pet.SetOrigin((200.0, 0.0, 0.0))
    mask = block((20, 20, 20), (22, 22, 22)) * 2
    assert suv_peak(mask, pet) is None
    assert sitk.GetArrayFromImage(remove_faint(mask, pet, 2, 5.0)).any()


@pytest.mark.parametrize("degrees", [0, 25])
def test_faint_nodes_go_and_tumours_stay(degrees: float) -> None:
    """Nodes with SUVpeak 2 and 3 and a tumour without uptake, on turned grids too."""
    pet = pet_with({(3, 3, 3): 38.0, (8, 8, 8): 57.0})
    labels = np.zeros((48, 48, 48), np.uint8)
    labels[10:15, 10:15, 10:15] = 2
    labels[30:35, 30:35, 30:35] = 2
    labels[10:15, 30:35, 10:15] = 1
    mask = volume(labels, (1, 1, 1))
    for image in (pet, mask):
        image.SetDirection(rotation(degrees, 2).ravel())
    kept = sitk.GetArrayFromImage(remove_faint(mask, pet, 2, 2.5))
    expected = labels.copy()
    expected[10:15, 10:15, 10:15] = 0
    np.testing.assert_array_equal(kept, expected)
    for bound in (2.0, 3.0):  # as much as the bound is enough
        kept = sitk.GetArrayFromImage(remove_faint(mask, pet, 2, bound))
        assert kept[32, 32, 32] == 2
    assert not (sitk.GetArrayFromImage(remove_faint(mask, pet, 2, 3.01)) == 2).any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)
