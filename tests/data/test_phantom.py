import csv

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from hnseg.data.phantom import make_case, make_cohort, write_case
from hnseg.data.phantom.anatomy import Patient, rotation
from hnseg.data.phantom.lesions import GTVN, GTVP, draw_lesions
from hnseg.data.phantom.scanner import CENTRES, NAMES
from hnseg.data.phantom.solids import ScanGrid, Solid, coverage, rod, sample
from hnseg.errors import HnsegError
from hnseg.imaging.case import read_cases
from hnseg.imaging.images import same_grid

# Storage orders: upright, flipped, permuted and left-handed, oblique.
DIRECTIONS = {centre.name: centre.direction for centre in CENTRES}


@pytest.fixture(scope="module")
def cases():
    """One case of each centre."""
    return [make_case(index, 5, center=name) for index, name in enumerate(NAMES)]


def shape_statistics(mask):
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(mask)
    return statistics


def upright(image, spacing=3.0, fill=0.0, like=None):
    """An image on an axis-aligned grid over `like`, as (z, y, x), and the grid's lowest corner (mm)."""
    like = image if like is None else like
    ends = [[-0.5, size - 0.5] for size in like.GetSize()]
    corners = [
        like.TransformContinuousIndexToPhysicalPoint([*p])
        for p in np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)
    ]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    size = np.ceil((high - low) / spacing).astype(int).tolist()
    sampled = sitk.Resample(
        image,
        size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        low.tolist(),
        [spacing] * 3,
        np.eye(3).ravel().tolist(),
        fill,
    )
    return sitk.GetArrayFromImage(sampled), low


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(tmp_path):
    make_cohort(tmp_path / "one", 3, seed=4, workers=1)
    make_cohort(tmp_path / "two", 3, seed=4, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_cohort_in_the_hecktor_layout_can_grow_and_its_first_cases_stay_the_same(tmp_path):
    make_cohort(tmp_path, 1, seed=4, workers=1)
    first = files(tmp_path)
    make_cohort(tmp_path, 2, seed=4, workers=1)
    grown = files(tmp_path)
    images = [path for path in first if path.name.endswith(".nii.gz")]
    assert len(images) == 4
    assert all(grown[path] == first[path] for path in images)
    found = read_cases(tmp_path)
    assert len(found) == 2
    with (tmp_path / "clinical.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["PatientID"], row["CenterID"]) for row in rows] == [(c.case_id, c.center) for c in found]
    assert all(40 < float(row["Weight"]) < 150 for row in rows)


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_a_case_is_on_its_centre_s_grids(tmp_path, cases, index):
    write_case(cases[index], tmp_path)
    (case,) = read_cases(tmp_path)
    ct, pet, label = (sitk.ReadImage(str(path)) for path in (case.ct, case.pet, case.label))
    head = sitk.ReadImage(str(tmp_path / "heads" / f"{case.case_id}.nii.gz"))
    types = [image.GetPixelID() for image in (ct, pet, label, head)]
    assert types == [sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkUInt8, sitk.sitkUInt8]
    assert same_grid(ct, label)
    assert same_grid(ct, head)
    assert not same_grid(ct, pet)
    np.testing.assert_allclose(np.reshape(ct.GetDirection(), (3, 3)), DIRECTIONS[case.center], atol=1e-5)
    assert all(3.0 <= step <= 5.5 for step in pet.GetSpacing())
    assert set(np.unique(sitk.GetArrayViewFromImage(label))) <= {0, 1, 2}
    assert set(np.unique(sitk.GetArrayViewFromImage(head))) == {0, 1}
    assert sum(path.stat().st_size for path in (case.ct, case.pet, case.label)) < 2e6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"phantom.json": '{"version": 1, "seed": 1, "size": "small", "cases": 3}'}, "another cohort"),
        (
            {"phantom.json": '{"version": 1, "seed": 0, "size": "small", "cases": 4}'},
            "another cohort .*cases 4",
        ),
        ({"scan.nii.gz": ""}, "holds no phantom"),
    ],
)
def test_a_folder_with_something_else_is_left_alone(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(HnsegError, match=message):
        make_cohort(tmp_path, 3, seed=0, workers=1)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=list(DIRECTIONS))
def test_a_solid_lies_where_its_coordinates_say(direction):
    """SimpleITK measures centroid and volume of an ellipsoid on grids of any orientation."""
    grid = ScanGrid.covering([-30, -50, 60], [40, 20, 130], [1.5, 1.2, 2.0], direction)
    turn = rotation(np.array([0.3, 0.2, 0.5]))
    ellipsoid = Solid(np.array([5.0, -15.0, 100.0]), np.array([20.0, 12.0, 16.0]), axes=turn)
    box, level = sample(ellipsoid, grid)
    mask = np.zeros(grid.shape, np.uint8)
    mask[box] = level < 1
    statistics = shape_statistics(grid.image(mask))
    np.testing.assert_allclose(statistics.GetCentroid(1), ellipsoid.centre, atol=0.1)
    volume = 4 / 3 * np.pi * ellipsoid.radii.prod()
    assert statistics.GetPhysicalSize(1) == pytest.approx(volume, rel=0.02)
    assert coverage(ellipsoid, grid)[1].sum() * grid.spacing.prod() == pytest.approx(volume, rel=0.05)


def test_a_box_holds_all_of_its_solid():
    """What `sample` leaves out is outside: compared with the whole grid's coordinates."""
    grid = ScanGrid.covering([-40, -40, -40], [40, 40, 40], [2, 2, 2], rotation(np.array([0.1, 0.2, 0.3])))
    cylinder = rod((-15, 3, -12), (18, -6, 10), 9.0)
    box, level = sample(cylinder, grid)
    inside = np.zeros(grid.shape, bool)
    inside[box] = level < 1
    index = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)
    points = grid.origin + (index * grid.spacing) @ grid.direction.T
    x, y, z = np.moveaxis((points - cylinder.centre) @ cylinder.axes / cylinder.radii, -1, 0)
    expected = (x**2 + y**2) ** 4 + z**8 < 1
    assert (inside != expected.transpose(2, 1, 0)).sum() <= 2  # rounding on the surface


def test_lesions_have_hecktors_presence_and_volumes():
    """Those of the 680 training cases of HECKTOR 2025."""
    patient = Patient.draw(np.random.default_rng(0), 0.0)
    drawn = [draw_lesions(patient, np.random.default_rng([9, i])) for i in range(500)]
    ml = np.array(
        [[sum(x.solid.volume() for x in each if x.label == k) / 1000 for k in (GTVP, GTVN)] for each in drawn]
    )
    presence = [
        np.mean(((ml > 0) == (gtvp, gtvn)).all(1))
        for gtvp, gtvn in ((True, True), (True, False), (False, True))
    ]
    np.testing.assert_allclose(presence, np.array([575, 77, 28]) / 680, atol=0.04)
    for column, expected in ((0, [1.5, 4, 8, 17, 40]), (1, [1, 5, 13, 24, 50])):
        present = ml[ml[:, column] > 0, column]
        np.testing.assert_allclose(np.percentile(present, [5, 25, 50, 75, 95]), expected, rtol=0.25)
    counts = np.array([[sum(x.label == k for x in each) for k in (GTVP, GTVN)] for each in drawn])
    assert counts[:, 0].max() == 2
    assert 8 < counts[:, 1].max() <= 13


def test_voxels_hold_the_volumes_that_were_drawn():
    rng = np.random.default_rng(3)
    patient = Patient.draw(rng, 0.0)
    for lesion in draw_lesions(patient, rng):
        centre = lesion.solid.centre
        grid = ScanGrid.covering(centre - 45, centre + 45, [1, 1, 1], np.eye(3))
        voxels = (sample(lesion.solid, grid)[1] < 1).sum()
        assert voxels == pytest.approx(lesion.solid.volume(), rel=0.03)


def test_lesions_lie_in_the_body_and_in_both_fields_of_view(cases):
    for case in cases:
        lesion = np.argwhere(sitk.GetArrayFromImage(case.label) > 0)
        hu = sitk.GetArrayFromImage(case.ct)[tuple(lesion.T)]
        assert np.median(hu) > 20
        for index in lesion[::7]:
            point = case.label.TransformIndexToPhysicalPoint(index[::-1].tolist())
            on_pet = np.array(case.pet.TransformPhysicalPointToContinuousIndex(point))
            assert ((on_pet >= 0) & (on_pet <= np.array(case.pet.GetSize()) - 1)).all()


def test_the_body_is_upright_in_patient_space_whatever_the_storage(cases):
    """PET shows the brain high in CT's head mask, above the lesions, and CT the nose at the front: LPS mm."""
    for case in cases:
        head = shape_statistics(case.head)
        x, y, z = head.GetCentroid(1)
        ct, low = upright(case.ct, fill=-1000)
        suv, _ = upright(case.pet, like=case.ct)
        mask, _ = upright(case.head)
        brain = ndimage.binary_opening((suv > 3) & (mask > 0), iterations=3)
        brain_z, _, brain_x = low[::-1] + 3 * np.argwhere(brain).mean(axis=0)
        assert brain_z > z
        assert abs(brain_x - x) < 12
        lesions = sitk.Cast(case.label > 0, sitk.sitkUInt8)
        assert shape_statistics(lesions).GetCentroid(1)[2] < brain_z - 60
        nose = np.argwhere((ct < -500) & ndimage.binary_erosion(mask > 0, iterations=4))
        assert low[1] + 3 * nose.mean(axis=0)[1] < y - 20
        assert shape_statistics(case.head).GetPhysicalSize(1) / 1e6 == pytest.approx(4.0, rel=0.35)  # litres


def test_ct_contrast_of_lesions_is_below_the_noise_of_a_voxel(cases):
    """Against muscle at the same height of the neck, in cases with a large lesion."""
    compared = 0
    for case in cases:
        label, hu = sitk.GetArrayFromImage(case.label), sitk.GetArrayFromImage(case.ct).astype(float)
        lesion = ndimage.binary_erosion(label > 0)
        if lesion.sum() < 30:
            continue
        near = ndimage.binary_dilation(label > 0, iterations=5) & ~ndimage.binary_dilation(
            label > 0, iterations=2
        )
        muscle = near & (hu > -20) & (hu < 140)
        noise = np.std(hu[lesion])
        assert 12 < noise < 45
        assert -5 < np.median(hu[lesion]) - np.median(hu[muscle]) < noise
        compared += 1
    assert compared >= 3


def test_physiological_uptake_is_as_hot_as_lesions(cases):
    """Outside all lesions but in the fine ROI, blobs of a node's size with a lesion's SUV."""
    alike = []
    for case in cases:
        suv = sitk.GetArrayFromImage(sitk.Resample(case.pet, case.label))
        label = sitk.GetArrayFromImage(case.label)
        centre = np.argwhere(label > 0).mean(axis=0)
        reach = 72 / np.array(case.label.GetSpacing()[::-1])
        roi = tuple(slice(max(int(c - r), 0), int(c + r)) for c, r in zip(centre, reach, strict=True))
        voxel = np.prod(case.label.GetSpacing()) / 1000
        blobs, _ = ndimage.label((suv[roi] > 3) & ~ndimage.binary_dilation(label[roi] > 0, iterations=3))
        alike.append((np.bincount(blobs.ravel())[1:] * voxel > 0.5).sum())
    assert np.median(alike) >= 3


def test_pet_edges_are_blurred(cases):
    """No step of the PET is as sharp as the skull's in CT: neighbours share what a point source holds."""
    for case in cases:
        suv = sitk.GetArrayFromImage(case.pet)
        sharpest = max(np.abs(np.diff(suv, axis=axis)).max() for axis in range(3))
        assert sharpest < 0.75 * suv.max()


@pytest.mark.slow
def test_a_full_case_is_as_large_as_a_real_one():
    case = make_case(0, 0, "full", center="HGJ")
    assert case.ct.GetSize()[:2] == (512, 512)
    assert 250 < case.ct.GetSize()[2] < 360
    assert sitk.GetArrayViewFromImage(case.label).max() > 0
