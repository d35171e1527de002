"""Pictures: the right place of the scan for every stored orientation, sides, colours of the contours."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from hnseg.evaluation.figures import VIEW_MM, Scan, overlay
from hnseg.imaging.case import Case
from hnseg.imaging.slices import COLOURS

# A bone-white lesion at the patient's left, back and top of a scan whose x, y, z run left, back and up (LPS).
BLOCK = (slice(12, 15), slice(26, 32), slice(22, 28))
SHAPE, SPACING, ORIGIN = (16, 36, 30), (2.0, 2.0, 4.0), (-30.0, -40.0, 100.0)


@pytest.fixture
def write(tmp_path):
    """Return a writer of (case, prediction), every volume stored in one orientation."""

    def write(orientation="LPS", *, empty=False):
        mask = np.zeros(SHAPE, np.uint8)
        if not empty:
            mask[BLOCK] = 2
            mask[2:4, 2:4, 2:4] = 1  # a smaller lesion, at the other end
        ct = np.where(mask == 2, 1000, -1000).astype(np.float32)
        pet = np.zeros((10, 20, 20), np.float32)
        pet[3, 4, 5] = 9  # at 5, 4, 3 × 4 mm from its origin
        shifted = np.where(mask == 2, mask, 0)[:, :, np.r_[1 : SHAPE[2], 0]]
        parts = {name: volume(array, SPACING, ORIGIN) for name, array in (("ct", ct), ("truth", mask))}
        parts["prediction"] = volume(shifted, SPACING, ORIGIN)
        parts["pet"] = volume(pet, (4.0, 4.0, 4.0), (-30.0, -40.0, 104.0))
        paths = {name: tmp_path / f"{orientation}_{name}.nii.gz" for name in parts}
        for name, part in parts.items():
            sitk.WriteImage(sitk.DICOMOrient(part, orientation), str(paths[name]))
        return Case("CHUM-001", paths["ct"], paths["pet"], paths["truth"]), paths["prediction"]

    return write


@pytest.fixture
def draw(write, tmp_path):
    """Return a drawer of the upper row's panels, without titles and neighbours."""

    def draw(orientation="LPS"):
        out = tmp_path / "pictures" / f"{orientation}.png"
        overlay(*write(orientation), out)
        assert list(out.parent.iterdir()) == [out]
        picture = imread(out)[..., :3]
        out.unlink()
        height, width, _ = picture.shape
        sides = [int(width * (0.03 + 0.315 * column)) for column in range(3)]
        return [picture[int(0.12 * height) : int(0.47 * height), x : x + int(0.26 * width)] for x in sides]

    return draw


def test_radiological_convention(draw):
    """What lies left, back and up: right and down in axial, right and up in the other planes."""
    for shown, down in zip(draw(), (True, False, False), strict=True):
        rows, columns = np.nonzero((shown > 0.95).all(axis=2))
        assert len(rows) > 100
        assert columns.mean() > shown.shape[1] / 2
        assert (rows.mean() > shown.shape[0] / 2) == down


def test_the_picture_does_not_depend_on_the_stored_orientation(draw):
    for ours, theirs in zip(draw("RAI"), draw("LPS"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_contours_of_truth_and_prediction(draw):
    axial = draw()[0]
    colours = [colour for pair in COLOURS.values() for colour in pair]
    seen = [c for c in colours if (np.abs(axial - to_rgb(c)).max(axis=2) < 0.02).any()]
    assert seen == list(COLOURS["GTVn"])


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RAI", "PIL"])
def test_arrays_run_left_back_and_up_however_they_are_stored(write, orientation):
    """And the largest lesion is in focus."""
    scan = Scan.read(*write(orientation))
    view = scan.view(scan.focus(), VIEW_MM)
    assert view.spacing == pytest.approx(SPACING)
    expected = np.zeros(SHAPE, bool)
    expected[BLOCK] = True
    for array in (view.ct > 500, view.truth == 2, np.roll(view.prediction == 2, 1, axis=2)):
        np.testing.assert_array_equal(array, expected)
    assert expected[view.focus[::-1]]
    assert view.focus_mm == pytest.approx(np.add(ORIGIN, np.multiply(view.focus, SPACING)).tolist())


@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_without_any_lesion_the_pet_maximum_is_in_focus(write, orientation):
    scan = Scan.read(*write(orientation, empty=True))
    view = scan.view(scan.focus(), VIEW_MM)
    assert view.focus_mm == pytest.approx((-30 + 5 * 4, -40 + 4 * 4, 104 + 3 * 4))
    assert view.pet[view.focus[::-1]] == pytest.approx(9)
    assert view.pet.shape == view.ct.shape


def test_a_long_scan_is_cropped_around_the_lesion():
    mask = np.zeros((100, 8, 8), np.uint8)
    mask[90:94, 3:5, 3:5] = 1
    labels, ct = (volume(array, (10.0, 10.0, 10.0), ORIGIN) for array in (mask, mask.astype(np.float32)))
    scan = Scan(ct, ct, labels, labels)
    view = scan.view(scan.focus(), VIEW_MM)
    assert view.ct.shape == (VIEW_MM / 10, 8, 8)
    assert view.truth[view.focus[::-1]] == 1
    assert view.focus_mm[2] == pytest.approx(100 + 10 * 91, abs=10)
    assert np.count_nonzero(view.truth) == np.count_nonzero(mask)
