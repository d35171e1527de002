"""A lesion stays where it is: from the scan to a stage's ROI and back, whatever the scan's geometry."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hnseg.data.resample import AIR_HU, label_to_grid, to_grid, to_image
from hnseg.imaging.grid import Grid
from hnseg.imaging.masks import centroid

LESION_HU, TISSUE_HU = 1000.0, 0.0
# The lattices of the coarse and fine stages, of the localiser, and of a small machine's.
ROI_SPACINGS = [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2.0, 2.0, 3.0), (4.0, 4.0, 4.0)]
ORIENTATIONS = [
    np.eye(3)[list(order)] * flips
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for flips in product([-1.0, 1.0], repeat=3)
]
UPRIGHT = st.just((0.0, 0.0, 0.0))
TURNED = st.tuples(*[st.integers(-60, 60).map(lambda n: n / 100)] * 3)  # rad, whole hundredths


@dataclass(frozen=True)
class Scene:
    """A scan with a ball in it.

    Args:
        truth: The ball on the scan's lattice, 0 and 1.
        spacing: mm of the ROI's lattice, (x, y, z).
        offset: mm from the lesion's centroid to the ROI's middle.
        radius: mm of the ball.
    """

    truth: sitk.Image
    spacing: tuple[float, ...]
    offset: tuple[float, ...]
    radius: float

    @property
    def grid(self) -> Grid:
        """An ROI that holds the ball wherever the field of view has cut it."""
        size = np.ceil((4 * self.radius + 2 * np.abs(self.offset)) / self.spacing).astype(int) + 4
        return Grid.centred(np.add(centroid(self.truth), self.offset), size, self.spacing)

    @property
    def slack(self) -> np.ndarray:
        """One voxel, of the scan or the ROI, whichever is larger: in voxels of the scan, (i, j, k)."""
        direction = np.abs(np.reshape(self.truth.GetDirection(), (3, 3)))
        return np.ceil(np.maximum(direction.T @ self.spacing / self.truth.GetSpacing(), 1) - 1e-6).astype(int)


def ball(
    radius: float, spacing: np.ndarray, faces: np.ndarray, middle: np.ndarray, direction: np.ndarray
) -> sitk.Image:
    """A ball (1) on a lattice cut at `faces`, (axis, low or high) mm from the voxel nearest its middle.

    Args:
        radius: mm.
        spacing: mm along (i, j, k).
        faces: (3, 2).
        middle: The ball's own middle, mm from that voxel along (i, j, k).
        direction: Columns are the voxel axes in space.
    """
    first, last = np.ceil(-faces[:, 0] / spacing), np.floor(faces[:, 1] / spacing)
    axes = [np.arange(a, b + 1) * s for a, b, s in zip(first, last, spacing, strict=True)]
    i, j, k = (axis - m for axis, m in zip(axes, middle, strict=True))
    inside = k[:, None, None] ** 2 + j[:, None] ** 2 + i**2 <= radius**2
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    return image


@st.composite
def scenes(draw) -> Scene:
    """Any orientation, straight or oblique, 0.5 to 6 mm, anywhere, the field of view cut on any side."""
    turn = Rotation.from_rotvec(draw(st.one_of(UPRIGHT, TURNED))).as_matrix()
    spacing = np.array(draw(st.tuples(*[st.integers(5, 60).map(lambda n: n / 10)] * 3)))
    roi = draw(st.sampled_from(ROI_SPACINGS))
    radius = 2.0 * max(*spacing, *roi)
    # The field of view ends beyond the lesion or cuts it, on any side. It leaves a voxel of either lattice
    # on both sides of the middle: a thinner slice could vanish between two voxels.
    faces = np.array(draw(st.tuples(*[st.tuples(*[st.floats(0.6, 1.4)] * 2)] * 3))) * radius
    middle = np.array(draw(st.tuples(*[st.floats(-0.5, 0.5)] * 3))) * spacing
    truth = ball(radius, spacing, faces, middle, turn @ draw(st.sampled_from(ORIENTATIONS)))
    truth.SetOrigin(draw(st.tuples(*[st.floats(-500, 500)] * 3)))
    return Scene(truth, roi, draw(st.tuples(*[st.floats(-5, 5)] * 3)), radius)


def seen(scene: Scene) -> np.ndarray:
    """What a perfect network would find: the scan's values on the ROI, cut half-way, and back as maps."""
    ct = sitk.Cast(scene.truth, sitk.sitkFloat32) * (LESION_HU - TISSUE_HU) + TISSUE_HU
    hu = to_grid(ct, scene.grid, fill=AIR_HU)
    maps = (hu > (LESION_HU + TISSUE_HU) / 2).astype(np.float32)
    return brought_back(maps, scene) >= 0.5


def labelled(scene: Scene) -> np.ndarray:
    """What a network is taught, brought back as labels."""
    return brought_back(label_to_grid(scene.truth, scene.grid), scene) == 1


def brought_back(array: np.ndarray, scene: Scene) -> np.ndarray:
    whole = np.zeros(scene.truth.GetSize()[::-1], array.dtype)
    placed = to_image(array[None], scene.grid, scene.truth)
    assert placed is not None
    (values,), box = placed
    whole[box] = values
    return whole


def assert_within_a_voxel(found: np.ndarray, scene: Scene) -> None:
    truth, slack = sitk.GetArrayFromImage(scene.truth) == 1, scene.slack[::-1]
    # Dilated and eroded by a box: as extremes axis by axis, far cheaper than by its voxels.
    around = {"size": 2 * slack + 1, "mode": "constant", "cval": False}
    assert not (found & ~ndimage.maximum_filter(truth, **around)).any()
    assert not (~found & ndimage.minimum_filter(truth, **around)).any()
    shift = np.subtract(ndimage.center_of_mass(found), ndimage.center_of_mass(truth))
    assert np.all(np.abs(shift) <= slack)


def there_and_back(scene: Scene) -> None:
    assert_within_a_voxel(seen(scene), scene)
    assert_within_a_voxel(labelled(scene), scene)


@settings(max_examples=40, deadline=None)
@given(scene=scenes())
def test_a_lesion_stays_within_a_voxel(scene):
    there_and_back(scene)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(scene=scenes())
def test_a_lesion_stays_within_a_voxel_in_a_thousand_geometries(scene):
    there_and_back(scene)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [-2, 2])
def test_a_shift_of_two_voxels_would_be_noticed(axis, voxels):
    faces, spacing = np.full((3, 2), 16.0), np.array([1.0, 2.0, 3.0])
    scene = Scene(ball(8.0, spacing, faces, np.zeros(3), np.eye(3)), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 8.0)
    found = seen(scene)
    assert_within_a_voxel(found, scene)
    with pytest.raises(AssertionError):
        assert_within_a_voxel(np.roll(found, voxels, axis), scene)
