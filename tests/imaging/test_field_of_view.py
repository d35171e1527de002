"""What a scan shows, against SimpleITK's own geometry and boxes worked by hand."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from members import rotation

from hnseg.imaging.grid import Grid
from hnseg.imaging.placement import cuts, in_field_of_view, without_pet


def scan(low: tuple[float, ...], high: tuple[float, ...], spacing: float = 4.0) -> sitk.Image:
    """An empty image whose field of view is a box (x, y, z) in mm."""
    size = ((np.array(high) - low) / spacing).astype(int)
    return volume(np.zeros(size[::-1], np.float32), [spacing] * 3, tuple(np.array(low) + spacing / 2))


@pytest.mark.parametrize("turn", [np.eye(3), np.diag((-1.0, -1, 1)), rotation(25, 0) @ rotation(-35, 2)])
def test_a_point_is_shown_where_simpleitk_finds_a_voxel(turn: np.ndarray) -> None:
    image = sitk.Image(9, 7, 5, sitk.sitkInt16)
    image.SetSpacing((2.0, 3.0, 6.0))
    image.SetOrigin((-7.0, 4.0, 11.0))
    image.SetDirection(turn.ravel())
    grid = Grid((12, 11, 10), (4.1, 4.3, 4.7), (-30.0, -18.0, -12.0))
    index = image.TransformPhysicalPointToContinuousIndex
    points = np.array(grid.origin) + np.stack(
        np.meshgrid(*(np.arange(n) for n in grid.size), indexing="ij"), -1
    ) * np.array(grid.spacing)
    at = np.apply_along_axis(lambda p: index([float(c) for c in p]), -1, points)
    expected = ((at >= -0.5) & (at <= np.array(image.GetSize()) - 0.5)).all(-1)
    assert 20 < expected.sum() < expected.size - 20
    np.testing.assert_array_equal(in_field_of_view(image, grid), expected.transpose(2, 1, 0))


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
    index = np.stack(np.meshgrid(*(np.arange(n) for n in on.GetSize()), indexing="ij"), -1)
    turn = np.array(on.GetDirection()).reshape(3, 3)
    where = (index * on.GetSpacing() @ turn.T + on.GetOrigin()).transpose(2, 1, 0, 3)
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
    # A network's mask lies on the head stage's grid, and shows no more head than the CT does.
    wide = Grid.centred((0, 0, high - 192), (64, 64, 96), (8.0, 8.0, 4.0))
    everywhere = wide.image(np.zeros(wide.shape, np.float32))
    predicted = sitk.GetArrayFromImage(head(everywhere)) * in_field_of_view(ct, wide).astype(np.uint8)
    assert cuts(wide.image(predicted), ct) == expected
