"""Pictures: the right place of the scan for every stored orientation, sides, colours of the contours."""

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from hnseg.errors import HnsegError
from hnseg.evaluation.figures import VIEW_MM, load_scan, overlay
from hnseg.imaging.case import Case
from hnseg.imaging.slices import COLOURS


@pytest.fixture
def draw(tmp_path):
    """Return `draw(orientation)`: bone-white block at the patient's left, back and top, also the lesion."""

    def make(orientation="LPS", truth=True):
        mask = np.zeros((24, 24, 24), np.uint8)
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

    truth, prediction = COLOURS["GTVn"]
    assert shows(draw(), truth)
    assert shows(draw(), prediction)
    assert not shows(draw(), COLOURS["GTVp"][0])
    without_truth = draw(truth=False)
    assert not shows(without_truth, truth)
    assert shows(without_truth, prediction)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["LPS.png"]


# A block at the patient's left, back and top of a scan whose x, y, z run left, back and up (LPS).
BLOCK = (slice(12, 15), slice(26, 32), slice(22, 28))
SHAPE, SPACING, ORIGIN = (16, 36, 30), (2.0, 2.0, 4.0), (-30.0, -40.0, 100.0)


def image(array, spacing=SPACING, origin=ORIGIN):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    return made


@pytest.fixture
def make_case(tmp_path):
    """Return a maker of (case, prediction) that stores every volume of the scene in one orientation."""

    def make(orientation="LPS", truth=True, predicted=True):
        mask = np.zeros(SHAPE, np.uint8)
        mask[BLOCK] = 2
        mask[2:4, 2:4, 2:4] = 1  # a smaller lesion, at the other end
        ct = np.where(mask == 2, 1000, np.where(mask == 1, 300, 0)).astype(np.float32)
        pet = np.zeros((10, 20, 20), np.float32)
        pet[3, 4, 5] = 9  # at 5, 4, 3 × 4 mm from its origin
        parts = {"ct": image(ct), "pet": image(pet, (4.0, 4.0, 4.0), (-30.0, -40.0, 104.0))}
        parts["prediction"] = image(mask if predicted else mask * 0)
        if truth:
            parts["truth"] = image(mask)
        paths = {name: tmp_path / f"{orientation}_{name}.nii.gz" for name in parts}
        for name, part in parts.items():
            sitk.WriteImage(sitk.DICOMOrient(part, orientation), str(paths[name]))
        return Case("CHUM-001", paths["ct"], paths["pet"], paths.get("truth")), paths["prediction"]

    return make


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "RAI", "PIL"])
def test_arrays_run_left_back_and_up_however_they_are_stored(make_case, orientation):
    view = load_scan(*make_case(orientation)).view()
    assert view.spacing == pytest.approx(SPACING)
    expected = np.zeros(SHAPE, bool)
    expected[BLOCK] = True
    for array in (view.ct > 500, view.truth == 2, view.prediction == 2):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_the_largest_true_lesion_is_in_focus(make_case, orientation):
    view = load_scan(*make_case(orientation)).view()
    x, y, z = view.focus
    assert view.truth[z, y, x] == 2
    assert view.focus_mm == pytest.approx(
        [o + i * s for o, i, s in zip(ORIGIN, view.focus, SPACING, strict=True)]
    )


def test_without_truth_the_prediction_is_in_focus(make_case):
    view = load_scan(*make_case(truth=False)).view()
    x, y, z = view.focus
    assert view.truth is None
    assert view.prediction[z, y, x] == 2


@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_without_any_lesion_the_pet_maximum_is_in_focus(make_case, orientation):
    view = load_scan(*make_case(orientation, truth=False, predicted=False)).view()
    assert view.focus_mm == pytest.approx((-30 + 5 * 4, -40 + 4 * 4, 104 + 3 * 4))
    x, y, z = view.focus
    assert view.pet[z, y, x] == pytest.approx(9)
    assert view.pet.shape == view.ct.shape


def test_a_long_scan_is_cropped_around_the_lesion(tmp_path):
    mask = np.zeros((100, 8, 8), np.uint8)
    mask[90:94, 3:5, 3:5] = 1
    volumes = {"ct": mask.astype(np.float32), "pet": mask.astype(np.float32), "mask": mask}
    paths = {name: tmp_path / f"{name}.nii.gz" for name in volumes}
    for name, volume in volumes.items():
        sitk.WriteImage(image(volume, (10.0, 10.0, 10.0)), str(paths[name]))
    view = load_scan(Case("A", paths["ct"], paths["pet"], paths["mask"]), paths["mask"]).view()
    assert view.ct.shape == (VIEW_MM / 10, 8, 8)
    assert view.truth[view.focus[2], view.focus[1], view.focus[0]] == 1
    assert view.focus_mm[2] == pytest.approx(100 + 10 * 91, abs=10)
    assert np.count_nonzero(view.truth) == np.count_nonzero(mask)


def test_a_mask_on_another_grid_is_refused_by_name(make_case, tmp_path):
    case, _ = make_case()
    other = tmp_path / "other.nii.gz"
    sitk.WriteImage(image(np.zeros((4, 4, 4), np.uint8)), str(other))
    with pytest.raises(HnsegError, match=rf"{other}: is not on the grid of {case.ct}"):
        load_scan(case, other)
