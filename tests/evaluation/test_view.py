"""What a picture shows: the right place of the scan, the same for every stored orientation."""

import numpy as np
import pytest
import SimpleITK as sitk

from hnseg.errors import HnsegError
from hnseg.evaluation.figures import VIEW_MM, load_view
from hnseg.imaging.case import Case

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
    view = load_view(*make_case(orientation))
    assert view.spacing == pytest.approx(SPACING)
    expected = np.zeros(SHAPE, bool)
    expected[BLOCK] = True
    for array in (view.ct > 500, view.truth == 2, view.prediction == 2):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_the_largest_true_lesion_is_in_focus(make_case, orientation):
    view = load_view(*make_case(orientation))
    x, y, z = view.focus
    assert view.truth[z, y, x] == 2
    assert view.focus_mm == pytest.approx(
        [o + i * s for o, i, s in zip(ORIGIN, view.focus, SPACING, strict=True)]
    )
    assert view.counts.gtvp.dice == view.counts.gtvn.dice == 1


def test_without_truth_the_prediction_is_in_focus(make_case):
    view = load_view(*make_case(truth=False))
    x, y, z = view.focus
    assert view.truth is None
    assert view.counts is None
    assert view.prediction[z, y, x] == 2


@pytest.mark.parametrize("orientation", ["LPS", "RAI"])
def test_without_any_lesion_the_pet_maximum_is_in_focus(make_case, orientation):
    view = load_view(*make_case(orientation, truth=False, predicted=False))
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
    view = load_view(Case("A", paths["ct"], paths["pet"], paths["mask"]), paths["mask"])
    assert view.ct.shape == (VIEW_MM / 10, 8, 8)
    assert view.truth[view.focus[2], view.focus[1], view.focus[0]] == 1
    assert view.focus_mm[2] == pytest.approx(100 + 10 * 91, abs=10)
    assert np.count_nonzero(view.truth) == np.count_nonzero(mask)


def test_a_mask_on_another_grid_is_refused_by_name(make_case, tmp_path):
    case, _ = make_case()
    other = tmp_path / "other.nii.gz"
    sitk.WriteImage(image(np.zeros((4, 4, 4), np.uint8)), str(other))
    with pytest.raises(HnsegError, match=rf"{other}: is not on the grid of {case.ct}"):
        load_view(case, other)
