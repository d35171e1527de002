"""Cubes on the CT's grid: what a linear field, SimpleITK and weights worked by hand say."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from members import rotation

from hnseg.imaging.grid import Grid
from hnseg.inference.roi_cover import blend

# Two cubes of 30 mm that overlap by 10 mm along x, and a third apart from them.
CUBES = [Grid.centred(center, (10, 10, 10), (3.0, 3.0, 3.0)) for center in ((20, 20, 20), (40, 20, 20))]
APART = Grid.centred((20, 20, 70), (10, 10, 10), (3.0, 3.0, 3.0))


def ct(degrees: float = 0.0) -> sitk.Image:
    image = volume(np.zeros((45, 30, 35), np.float32), (2, 2, 2))
    image.SetDirection(rotation(degrees, 2).ravel())
    return image


def points(image: sitk.Image) -> np.ndarray:
    """Positions (z, y, x, 3) in mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()[::-1]), indexing="ij"), -1)
    steps = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    return index[..., ::-1] @ steps.T + image.GetOrigin()


def on_grid(grid: Grid) -> np.ndarray:
    return points(grid.image(np.zeros(grid.shape, np.uint8)))


def field(where: np.ndarray) -> np.ndarray:
    return (where @ (0.004, 0.003, 0.002)).astype(np.float32)


def whole(placed: tuple, shape: tuple[int, ...]) -> np.ndarray:
    """The box put into a full volume of what cannot be: -1, or the label 255."""
    values, box = placed
    full = np.full(shape, 255 if values.dtype == np.uint8 else -1, values.dtype)
    full[box] = values
    return full


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("grids", [CUBES[:1], CUBES, [*CUBES, APART]])
def test_cubes_that_agree_give_what_they_agree_on(grids: list[Grid], degrees: float) -> None:
    """Linear interpolation of a linear field is exact, and so is a mean of equals: no seam, nothing twice.

    In the outer half of its last voxel a cube repeats that voxel, up to 1.5 mm off (0.008 here), which counts
    little beside the other cube.
    """
    image = ct(degrees)
    placed = blend(grids, (field(on_grid(grid))[None] for grid in grids), image)
    assert placed is not None
    values = whole((placed[0][0], placed[1]), image.GetSize()[::-1])
    where = points(image)
    inside = np.any([(np.abs(where - g.center) <= 13.5).all(-1) for g in grids], axis=0)
    assert inside.sum() > 1000
    np.testing.assert_allclose(values[inside], field(where)[inside], atol=1e-3 if len(grids) > 1 else 1e-6)
    outside = np.all([(np.abs(where - g.center) > 15.01).any(-1) for g in grids], axis=0)
    assert (values[outside] <= 0).all()


def test_in_the_overlap_each_counts_by_its_distance_to_the_face() -> None:
    """Cube 1 says 0 and cube 2 says 1; x from 25 to 35 mm is shared."""
    maps = (np.full((1, 10, 10, 10), value, np.float32) for value in (0.0, 1.0))
    placed = blend(CUBES, maps, ct())
    assert placed is not None
    line = whole((placed[0][0], placed[1]), (45, 30, 35))[10, 10]  # y = z = 20 mm, x = 2 i mm
    assert line[12] == 0  # 24 mm: cube 1 alone
    assert line[18] == 1  # 36 mm: cube 2 alone
    # 28 mm: 7 mm from the face of cube 1, 3 mm from that of cube 2. 30 mm: 5 mm from both.
    assert line[14] == pytest.approx(3 / 10, abs=0.01)
    assert line[15] == pytest.approx(1 / 2, abs=0.01)
    assert line[16] == pytest.approx(7 / 10, abs=0.01)
    assert (np.diff(line[8:25]) >= 0).all()


@pytest.mark.parametrize("grids", [CUBES[:1], CUBES])
def test_cubes_beside_the_ct_give_nothing(grids: list[Grid]) -> None:
    far = ct()
    far.SetOrigin((1000, 0, 0))
    maps = [np.ones((2, 10, 10, 10), np.float32) for _ in grids]
    assert blend(grids, maps, far) is None


def test_one_cube_may_miss_the_ct() -> None:
    far = Grid.centred((500, 20, 20), (10, 10, 10), (3.0, 3.0, 3.0))
    grids = [CUBES[0], far]
    placed = blend(grids, (np.ones((1, 10, 10, 10), np.float32) for _ in grids), ct())
    assert placed is not None
    assert placed[0].max() == pytest.approx(1)
