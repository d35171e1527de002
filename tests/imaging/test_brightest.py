"""The brightest PET that may be a lesion, in a head and neck made of ellipsoids."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from hypothesis import given, settings
from hypothesis import strategies as st
from members import rotation

from hnseg.imaging.placement import brightest

# In LPS mm, the vertex at z 0: centre, radii, SUV.
BRAIN = ((0, 10, -75), (66, 85, 63), 12.0)
CEREBELLUM = ((0, 45, -115), (44, 32, 30), 9.0)  # reaches 5 mm deeper than the coarse ROI's brain does
LESION = ((-30, -5, -190), (12, 14, 12), 6.0)
LOW, HIGH = np.array((-144.0, -144, -356)), np.array((144.0, 144, -68))  # the coarse ROI under this head
EYES = -112.0


def pet(*uptake: tuple, spacing: float = 4.0, background: float = 0.7, turn: np.ndarray | None = None):
    """SUV on a grid of 320 x 320 x 400 mm from 20 mm above the vertex down, turned about its middle."""
    size = (np.array((320, 320, 400)) / spacing).astype(int)
    image = sitk.Image(size.tolist(), sitk.sitkFloat32)
    image.SetSpacing([spacing] * 3)
    turn = np.eye(3) if turn is None else turn
    image.SetDirection(turn.ravel())
    image.SetOrigin((0, 0, -180) - turn @ ((size - 1) / 2 * spacing))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
    where = (index * spacing @ turn.T + image.GetOrigin()).transpose(2, 1, 0, 3)
    suv = np.full(where.shape[:3], background, np.float32)
    for centre, radii, value in uptake:
        suv[(((where - centre) / radii) ** 2).sum(-1) < 1] = value
    filled = sitk.GetImageFromArray(suv)
    filled.CopyInformation(image)
    return filled


def ct(low: float = -400, high: float = 20) -> sitk.Image:
    """A CT of which only its field of view matters: 500 x 500 mm, from `low` to `high` mm."""
    slices = int((high - low) / 3)
    return volume(np.zeros((slices, 50, 50), np.float32), (10, 10, 3), (-245, -245, low + 1.5))


@pytest.mark.parametrize("brain_above", [EYES, np.inf])
@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_a_lesion_is_taken_and_the_brighter_brain_is_not(brain_above: float, degrees: float) -> None:
    """With the eyes' height or without: the ROI's top cuts the brain."""
    turned = pet(BRAIN, CEREBELLUM, LESION, turn=rotation(degrees, 0))
    region = brightest(turned, ct(), LOW, HIGH, brain_above)
    assert region is not None
    np.testing.assert_allclose(region.center, LESION[0], atol=2)
    assert region.suv_peak == pytest.approx(6.0, abs=0.3)


@pytest.mark.parametrize("uptake", [[], [BRAIN, CEREBELLUM]], ids=["flat", "brain alone"])
def test_nothing_that_stands_out_is_no_region(uptake: list) -> None:
    assert brightest(pet(*uptake), ct(), LOW, HIGH, EYES) is None


def test_uptake_that_the_ct_does_not_show_is_not_taken() -> None:
    """It could not be in the mask, which lies on the CT's grid."""
    brighter = ((10, 0, -300), (14, 14, 14), 9.0)
    for low, expected in ((-400, brighter), (-280, LESION)):
        region = brightest(pet(brighter, LESION), ct(low=low), LOW, HIGH, EYES)
        assert region is not None
        np.testing.assert_allclose(region.center, expected[0], atol=2)


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(st.integers(-50, 50), st.integers(-40, 40), st.integers(-300, -170)),
    st.integers(9, 25),
    st.sampled_from([3.2, 4.0, 5.5]),
)
def test_a_sphere_is_found_wherever_it_lies(centre: tuple, radius: int, spacing: float) -> None:
    region = brightest(pet(BRAIN, (centre, [radius] * 3, 6.0), spacing=spacing), ct(), LOW, HIGH, EYES)
    assert region is not None
    np.testing.assert_allclose(region.center, centre, atol=spacing)
