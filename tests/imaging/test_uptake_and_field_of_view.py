"""The brightest PET in a head and neck of ellipsoids, and what a scan shows, by SimpleITK's own geometry."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from hypothesis import given, settings
from hypothesis import strategies as st
from members import rotation

from hnseg.imaging.grid import Grid
from hnseg.imaging.placement import brightest, cuts, in_field_of_view, without_pet

# In LPS mm, the vertex at z 0: centre, radii, SUV.
BRAIN = ((0, 10, -75), (66, 85, 63), 12.0)
CEREBELLUM = ((0, 45, -115), (44, 32, 30), 9.0)  # reaches 5 mm deeper than the coarse ROI's brain does
LESION = ((-30, -5, -190), (12, 14, 12), 6.0)
LOW, HIGH = np.array((-144.0, -144, -356)), np.array((144.0, 144, -68))  # the coarse ROI under this head
EYES = -112.0


def centres(image: sitk.Image) -> np.ndarray:
    """The voxels' centres in mm, (z, y, x, 3) of (x, y, z)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1)
    turn = np.array(image.GetDirection()).reshape(3, 3)
    return (index * image.GetSpacing() @ turn.T + image.GetOrigin()).transpose(2, 1, 0, 3)


def pet(*uptake: tuple, spacing: float = 4.0, background: float = 0.7, turn: np.ndarray | None = None):
    """SUV on a grid of 320 x 320 x 400 mm from 20 mm above the vertex down, turned about its middle."""
    size = (np.array((320, 320, 400)) / spacing).astype(int)
    image = sitk.Image(size.tolist(), sitk.sitkFloat32)
    image.SetSpacing([spacing] * 3)
    turn = np.eye(3) if turn is None else turn
    image.SetDirection(turn.ravel())
    image.SetOrigin((0, 0, -180) - turn @ ((size - 1) / 2 * spacing))
    where = centres(image)
    suv = np.full(where.shape[:3], background, np.float32)
    for centre, radii, value in uptake:
        suv[(((where - centre) / radii) ** 2).sum(-1) < 1] = value
    filled = sitk.GetImageFromArray(suv)
    filled.CopyInformation(image)
    return filled


def scan(low: tuple[float, ...], high: tuple[float, ...], spacing: float = 4.0) -> sitk.Image:
    """An empty image whose field of view is a box (x, y, z) in mm."""
    size = ((np.array(high) - low) / spacing).astype(int)
    return volume(np.zeros(size[::-1], np.float32), [spacing] * 3, tuple(np.array(low) + spacing / 2))


WIDE = scan((-250, -250, -400), (250, 250, 20))


@pytest.mark.parametrize("brain_above", [EYES, np.inf])
@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_a_lesion_is_taken_and_the_brighter_brain_is_not(brain_above: float, degrees: float) -> None:
    """With the eyes' height or without: the ROI's top cuts the brain."""
    turned = pet(BRAIN, CEREBELLUM, LESION, turn=rotation(degrees, 0))
    region = brightest(turned, WIDE, LOW, HIGH, brain_above)
    assert region is not None
    np.testing.assert_allclose(region.center, LESION[0], atol=2)
    assert region.suv_peak == pytest.approx(6.0, abs=0.3)


@pytest.mark.parametrize("uptake", [[], [BRAIN, CEREBELLUM]], ids=["flat", "brain alone"])
def test_nothing_that_stands_out_is_no_region(uptake: list) -> None:
    assert brightest(pet(*uptake), WIDE, LOW, HIGH, EYES) is None


def test_uptake_that_the_ct_does_not_show_is_not_taken() -> None:
    """It could not be in the mask, which lies on the CT's grid."""
    brighter = ((10, 0, -300), (14, 14, 14), 9.0)
    for low, expected in ((-400, brighter), (-280, LESION)):
        region = brightest(pet(brighter, LESION), scan((-250, -250, low), (250, 250, 20)), LOW, HIGH, EYES)
        assert region is not None
        np.testing.assert_allclose(region.center, expected[0], atol=2)


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(st.integers(-50, 50), st.integers(-40, 40), st.integers(-300, -170)),
    st.integers(9, 25),
    st.sampled_from([3.2, 4.0, 5.5]),
)
def test_a_sphere_is_found_wherever_it_lies(centre: tuple, radius: int, spacing: float) -> None:
    region = brightest(pet(BRAIN, (centre, [radius] * 3, 6.0), spacing=spacing), WIDE, LOW, HIGH, EYES)
    assert region is not None
    np.testing.assert_allclose(region.center, centre, atol=spacing)


@pytest.mark.parametrize("turn", [np.eye(3), np.diag((-1.0, -1, 1)), rotation(25, 0) @ rotation(-35, 2)])
def test_a_point_is_shown_where_simpleitk_finds_a_voxel(turn: np.ndarray) -> None:
    image = sitk.Image(9, 7, 5, sitk.sitkInt16)
    image.SetSpacing((2.0, 3.0, 6.0))
    image.SetOrigin((-7.0, 4.0, 11.0))
    image.SetDirection(turn.ravel())
    grid = Grid((12, 11, 10), (4.1, 4.3, 4.7), (-30.0, -18.0, -12.0))
    index = image.TransformPhysicalPointToContinuousIndex
    points = centres(grid.image(np.zeros(grid.shape)))
    at = np.apply_along_axis(lambda p: index([float(c) for c in p]), -1, points)
    expected = ((at >= -0.5) & (at <= np.array(image.GetSize()) - 0.5)).all(-1)
    assert 20 < expected.sum() < expected.size - 20
    np.testing.assert_array_equal(in_field_of_view(image, grid), expected)


CT = scan((-200, -200, -400), (200, 200, 0))
ROI = Grid.centred((0, 0, -144), (36,) * 3, (8.0,) * 3)  # 288 mm: x, y -144..144, z -288..0


@pytest.mark.parametrize(
    ("pet", "share"),
    [
        (scan((-200, -200, -400), (200, 200, 0)), 0.0),
        (scan((-148, -148, -300), (148, 148, 0)), 0.0),  # narrower than the CT, not than the ROI
        (scan((-72, -200, -400), (200, 200, 0)), 0.25),
        (scan((-72, -72, -400), (72, 72, 0)), 0.75),
        (scan((-200, -200, -400), (200, 200, -72)), 0.25),
        (scan((-200, -200, -900), (200, 200, -288)), 1.0),
    ],
)
def test_the_share_of_a_roi_without_pet(pet: sitk.Image, share: float) -> None:
    assert without_pet([ROI], CT, pet) == pytest.approx(share, abs=0.02)


def test_what_the_ct_does_not_show_is_not_missed_in_the_pet() -> None:
    """A ROI half below the CT's end, as in a scan of the head alone; and one that the CT shows none of."""
    head, narrow = scan((-200, -200, -144), (200, 200, 0)), scan((0, -200, -400), (200, 200, 0))
    assert without_pet([ROI], head, scan((-200, -200, -144), (200, 200, 0))) == 0
    assert without_pet([ROI], head, narrow) == pytest.approx(0.5, abs=0.02)
    assert without_pet([ROI], scan((-200, -200, 100), (200, 200, 300)), narrow) == 0


def head(on: sitk.Image, vertex: float = -20.0, chin: float = -245.0) -> sitk.Image:
    """An ellipsoid of 150 x 190 mm from vertex to chin, on the grid of an image, flat below the chin."""
    where = centres(on)
    middle, radii = (0, 0, vertex - 150), (75, 95, 150)
    inside = ((((where - middle) / radii) ** 2).sum(-1) < 1) & (where[..., 2] > chin)
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.CopyInformation(on)
    return mask


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-400, 0, (False, False)),
        (-400, -20, (False, False)),  # the scan begins at the vertex
        (-400, -60, (True, False)),
        (-265, 0, (False, False)),  # 20 mm of neck
        (-245, 0, (False, True)),  # the scan ends at the chin: no neck
        (-170, 0, (False, True)),
        (-170, -60, (True, True)),
    ],
)
@pytest.mark.parametrize("spacing", [3.0, 5.0])
def test_a_scan_that_ends_in_the_head(low: float, high: float, expected: tuple, spacing: float) -> None:
    ct = scan((-150, -150, low), (150, 150, high), spacing)
    assert cuts(head(ct), ct) == expected
    # A network's mask lies on the localiser's grid, and shows no more head than the CT does.
    wide = Grid.centred((0, 0, high - 192), (64, 64, 96), (8.0, 8.0, 4.0))
    everywhere = wide.image(np.zeros(wide.shape, np.float32))
    predicted = sitk.GetArrayFromImage(head(everywhere)) * in_field_of_view(ct, wide).astype(np.uint8)
    assert cuts(wide.image(predicted), ct) == expected
