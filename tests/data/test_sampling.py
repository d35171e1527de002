"""What volumes are cut from: held against SimpleITK on the authors' steps written out."""

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, label_image, pet_image

from hnseg.card import Sampling
from hnseg.data.resample import sample_images, sample_label
from hnseg.imaging.grid import Grid

GRID = Grid.centred((40, 44, 50), (20, 18, 16), (3.0, 3.0, 3.0))
HEAD_SIZE, HEAD_SPACING = (24, 24, 20), (3.5, 3.5, 4.5)  # 84 x 84 x 90 mm: the whole fabricated scan
AUTHORS = Sampling("head_crop", "minus_one", head_size=HEAD_SIZE, head_spacing=HEAD_SPACING)


def resampled(image: sitk.Image, grid: Grid, fill: float, kind: int = sitk.sitkBSpline) -> sitk.Image:
    """SimpleITK's own resampling of the whole image."""
    identity = np.eye(3).ravel().tolist()
    image = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.Resample(image, grid.size, sitk.Transform(), kind, grid.origin, grid.spacing, identity, fill)


def windowed(image: sitk.Image, low: float, high: float) -> sitk.Image:
    return sitk.IntensityWindowing(image, low, high, 0.0, 1.0)


def crop_grid(ct: sitk.Image) -> Grid:
    """From the image's corner in x and y, from the top of the scan down; fabricated CTs begin at voxel 0."""
    corner = np.array(ct.GetOrigin()) - np.array(ct.GetSpacing()) / 2
    extent = np.array(HEAD_SIZE) * np.array(HEAD_SPACING)
    top = corner[2] + ct.GetSize()[2] * ct.GetSpacing()[2]
    first = np.array([corner[0], corner[1], top - extent[2]]) + np.array(HEAD_SPACING) / 2
    return Grid(HEAD_SIZE, HEAD_SPACING, tuple(float(v) for v in first))


def test_the_authors_head_crop_step_by_step():
    ct, pet = ct_image(), pet_image()
    crop = crop_grid(ct)
    hu = sitk.Round(resampled(ct, crop, -1.0))
    suv = resampled(pet, crop, -1.0)
    span = sitk.GetArrayFromImage(suv)
    unit = (suv - float(span.min())) / float(span.max() - span.min())
    expected = {
        "ct": resampled(windowed(hu, -105, 195), GRID, -1.0),
        "pet": resampled(windowed(unit, 0, 5), GRID, 0.0),  # level 2.5, width 5
    }
    for name, array in sample_images(AUTHORS, ct, pet, GRID).items():
        np.testing.assert_allclose(array, sitk.GetArrayFromImage(expected[name]), atol=1e-4)


def test_beyond_the_scan_the_study_is_air_or_the_authors_minus_one():
    far = Grid.centred((400, 400, 400), (6, 6, 6), (2.0, 2.0, 2.0))
    air = sample_images(Sampling(), ct_image(), pet_image(), far)
    assert (np.unique(air["ct"]), np.unique(air["pet"])) == ([-1024], [0])
    authors = sample_images(Sampling(outside="minus_one"), ct_image(), pet_image(), far)
    assert (np.unique(authors["ct"]), np.unique(authors["pet"])) == ([-1], [-1])


@pytest.mark.parametrize("sampling", [Sampling(), AUTHORS], ids=["study", "head crop"])
@pytest.mark.parametrize("name", ["ct", "pet"])
def test_one_modality_alone_is_what_it_is_beside_the_other(sampling, name):
    both = sample_images(sampling, ct_image(), pet_image(), GRID)
    alone = sample_images(sampling, ct_image(), pet_image(), GRID, modalities=(name,))
    assert list(alone) == [name]
    np.testing.assert_array_equal(alone[name], both[name])


def test_labels_take_the_same_steps_as_the_images():
    label, ct = label_image(), ct_image()
    crop = crop_grid(ct)
    once = resampled(label, crop, 0.0, sitk.sitkNearestNeighbor)
    twice = sitk.GetArrayFromImage(resampled(once, GRID, 0.0, sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(sample_label(AUTHORS, label, ct, GRID), twice)
    direct = sitk.GetArrayFromImage(resampled(label, GRID, 0.0, sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(sample_label(Sampling(), label, ct, GRID), direct)
    assert direct.any()
