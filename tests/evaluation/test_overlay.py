"""The picture itself: which side is which, the colours of the contours, whole files."""

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from hnseg.evaluation.figures import overlay
from hnseg.imaging.case import Case
from hnseg.imaging.slices import COLOURS

SHAPE = (24, 24, 24)


@pytest.fixture
def draw(tmp_path):
    """Return `draw(orientation)`: bone-white block at the patient's left, back and top, also the lesion."""

    def make(orientation="LPS", truth=True):
        mask = np.zeros(SHAPE, np.uint8)
        mask[15:21, 15:21, 15:21] = 2
        shifted = np.roll(mask, -1, axis=(1, 2))
        ct = np.where(mask, 1000, -1000).astype(np.float32)
        paths = {}
        for name, array in {"ct": ct, "pet": ct * 0, "truth": mask, "prediction": shifted}.items():
            paths[name] = tmp_path / f"{orientation}_{name}.nii.gz"
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((3.0, 3.0, 3.0))
            sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(paths[name]))
        case = Case("CHUM-001", paths["ct"], paths["pet"], paths["truth"] if truth else None)
        out = tmp_path / "pictures" / f"{orientation}.png"
        assert overlay(case, paths["prediction"], out) == out
        return imread(out)[..., :3]

    return make


def panel(picture, column):
    """The middle of a panel of the upper row, without its title and neighbours."""
    height, width, _ = picture.shape
    left = int(width * (0.03 + 0.315 * column))
    return picture[int(0.12 * height) : int(0.47 * height), left : left + int(0.26 * width)]


@pytest.mark.parametrize(("column", "right", "down"), [(0, True, True), (1, True, False), (2, True, False)])
def test_radiological_convention(draw, column, right, down):
    shown = panel(draw(), column)
    rows, columns = np.nonzero((shown > 0.95).all(axis=2))
    assert len(rows) > 500
    assert (columns.mean() > shown.shape[1] / 2) == right  # left of the patient, or back, at the right
    assert (rows.mean() > shown.shape[0] / 2) == down


def test_the_picture_does_not_depend_on_the_stored_orientation(draw):
    np.testing.assert_allclose(draw("RAI"), draw("LPS"), atol=0.01)


def test_contours_of_truth_and_prediction(draw, tmp_path):
    def shows(picture, colour):
        return (np.abs(panel(picture, 0) - to_rgb(colour)).max(axis=2) < 0.02).any()

    truth, prediction = COLOURS["gtvn"]
    assert shows(draw(), truth)
    assert shows(draw(), prediction)
    assert not shows(draw(), COLOURS["gtvp"][0])
    without_truth = draw(truth=False)
    assert not shows(without_truth, truth)
    assert shows(without_truth, prediction)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["LPS.png"]
