"""Pictures: the right place of the scan for every stored orientation, sides, colours of the contours."""

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from hnseg.evaluation.figures import VIEW_MM, Scan, overlay
from hnseg.imaging.case import Case
from hnseg.imaging.slices import COLOURS

# A block at the patient's left, back and top of a scan whose x, y, z run left, back and up (LPS).
BLOCK = (slice(12, 15), slice(26, 32), slice(22, 28))
SHAPE, SPACING, ORIGIN = (16, 36, 30), (2.0, 2.0, 4.0), (-30.0, -40.0, 100.0)


def image(array, spacing=SPACING, origin=ORIGIN):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    return made


@pytest.fixture
def draw(tmp_path):
    """Return `draw(orientation)`: bone-white block at the patient's left, back and top, also the lesion."""

    def make(orientation="LPS"):
        mask = np.zeros((24, 24, 24), np.uint8)
        mask[15:21, 15:21, 15:21] = 2
        shifted = np.roll(mask, -1, axis=(1, 2))
        ct = np.where(mask, 1000, -1000).astype(np.float32)
        paths = {}
        for name, array in {"ct": ct, "pet": ct * 0, "truth": mask, "prediction": shifted}.items():
            paths[name] = tmp_path / f"{orientation}_{name}.nii.gz"
            volume = image(array, (3.0, 3.0, 3.0))
            sitk.WriteImage(sitk.DICOMOrient(volume, orientation), str(paths[name]))
        out = tmp_path / "pictures" / f"{orientation}.png"
        overlay(Case("CHUM-001", paths["ct"], paths["pet"], paths["truth"]), paths["prediction"], out)
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
    shown = panel(draw(), 0)
    seen = {
        colour: bool((np.abs(shown - to_rgb(colour)).max(axis=2) < 0.02).any())
        for colours in COLOURS.values()
        for colour in colours
    }
    assert [colour for colour, found in seen.items() if found] == list(COLOURS["GTVn"])
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["LPS.png"]


@pytest.fixture
def read(tmp_path):
    """Return a maker of a scan whose volumes are all stored in one orientation; labels times a factor."""

    def read(orientation="LPS", labels=1):
        mask = np.zeros(SHAPE, np.uint8)
        mask[BLOCK] = 2
        mask[2:4, 2:4, 2:4] = 1  # a smaller lesion, at the other end
        ct = np.where(mask == 2, 1000, np.where(mask == 1, 300, 0)).astype(np.float32)
        pet = np.zeros((10, 20, 20), np.float32)
        pet[3, 4, 5] = 9  # at 5, 4, 3 × 4 mm from its origin
        parts = {"ct": image(ct), "pet": image(pet, (4.0, 4.0, 4.0), (-30.0, -40.0, 104.0))}
        parts["mask"] = image(mask * np.uint8(labels))
        paths = {name: tmp_path / f"{orientation}_{name}.nii.gz" for name in parts}
        for name, part in parts.items():
            sitk.WriteImage(sitk.DICOMOrient(part, orientation), str(paths[name]))
        return Scan.read(Case("CHUM-001", paths["ct"], paths["pet"], paths["mask"]), paths["mask"])

    return read


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RAI", "PIL"])
def test_arrays_run_left_back_and_up_however_they_are_stored(read, orientation):
    """And the largest lesion is in focus."""
    scan = read(orientation)
    view = scan.view(scan.focus(), VIEW_MM)
    assert view.spacing == pytest.approx(SPACING)
    expected = np.zeros(SHAPE, bool)
    expected[BLOCK] = True
    for array in (view.ct > 500, view.truth == 2, view.prediction == 2):
        np.testing.assert_array_equal(array, expected)
    x, y, z = view.focus
    assert expected[z, y, x]
    assert view.focus_mm == pytest.approx(
        [o + i * s for o, i, s in zip(ORIGIN, view.focus, SPACING, strict=True)]
    )


@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_without_any_lesion_the_pet_maximum_is_in_focus(read, orientation):
    scan = read(orientation, labels=0)
    view = scan.view(scan.focus(), VIEW_MM)
    assert view.focus_mm == pytest.approx((-30 + 5 * 4, -40 + 4 * 4, 104 + 3 * 4))
    x, y, z = view.focus
    assert view.pet[z, y, x] == pytest.approx(9)
    assert view.pet.shape == view.ct.shape


def test_a_long_scan_is_cropped_around_the_lesion():
    mask = np.zeros((100, 8, 8), np.uint8)
    mask[90:94, 3:5, 3:5] = 1
    labels, scan = (image(array, (10.0, 10.0, 10.0)) for array in (mask, mask.astype(np.float32)))
    scan = Scan(scan, scan, labels, labels)
    view = scan.view(scan.focus(), VIEW_MM)
    assert view.ct.shape == (VIEW_MM / 10, 8, 8)
    assert view.truth[view.focus[2], view.focus[1], view.focus[0]] == 1
    assert view.focus_mm[2] == pytest.approx(100 + 10 * 91, abs=10)
    assert np.count_nonzero(view.truth) == np.count_nonzero(mask)
