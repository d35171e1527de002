"""Lesions: SUV and shape by SimpleITK, the rest by hand; and which cases to review first."""

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from members import rotation

from hnseg.imaging.grid import Grid
from hnseg.inference.decision import Uptake
from hnseg.inference.lesions import COLUMNS, Lesion, measure, review_reasons

CLASSES = ("GTVp", "GTVn")
SHAPE = (20, 24, 28)


def turned(image: sitk.Image, degrees: float) -> sitk.Image:
    image.SetDirection(rotation(degrees, 2).ravel())
    return image


def three_lesions() -> np.ndarray:
    """(z, y, x): a tumour, a small node that touches it, a larger node of blocks that share a corner."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:8, 4:9, 4:10] = 1
    labels[8:10, 4:6, 4:6] = 2
    labels[12:15, 15:19, 15:21] = labels[15, 19, 21] = 2
    return labels


def described(mask: sitk.Image, pet: sitk.Image, **changes: Any) -> list[Lesion]:
    """Certain of everything, in an ROI of 1 m around it all, of one member."""
    usual = {
        "probabilities": np.ones((2, *mask.GetSize()[::-1]), np.float32),
        "votes": [],
        "grids": [Grid.centred((0, 0, 0), (10,) * 3, (100.0,) * 3)],
    }
    return measure(mask, pet, CLASSES, **(usual | changes))


def by_simpleitk(labels: np.ndarray, mask: sitk.Image, pet: sitk.Image) -> list[tuple[str, float, Any]]:
    """Class, volume, centroid and SUV of each lesion, class by class, the largest first."""
    rows = []
    for label, name in enumerate(CLASSES, start=1):
        parts = sitk.ConnectedComponent(mask == label, True)
        shape, uptake = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
        shape.Execute(parts)
        there = sitk.Resample(parts, pet, sitk.Transform(), sitk.sitkNearestNeighbor)
        uptake.Execute(there, pet)
        for n in sorted(shape.GetLabels(), key=shape.GetPhysicalSize, reverse=True):
            suv = (uptake.GetMaximum(n), uptake.GetMean(n))
            rows.append((name, shape.GetPhysicalSize(n) / 1000, (shape.GetCentroid(n), suv)))
    return rows


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 3.0), (3.5, 3.5, 3.0)])
def test_volume_place_and_uptake_are_simpleitks(degrees: float, spacing: tuple[float, ...]) -> None:
    labels = three_lesions()
    mask = turned(volume(labels, (2, 2, 3), (-10.0, 20.0, 5.0)), degrees)
    suv = np.random.default_rng(0).gamma(2, 3, (22, 26, 30)).astype(np.float32)
    pet = turned(volume(suv, spacing, (-10.5, 19.5, 5.0)), degrees)
    expected = by_simpleitk(labels, mask, pet)
    found = described(mask, pet)
    assert len(found) == len(expected) == 3
    for number, (lesion, (name, ml, (centroid, uptake))) in enumerate(
        zip(found, expected, strict=True), start=1
    ):
        assert (lesion.number, lesion.name) == (number, name)
        assert lesion.volume_ml == pytest.approx(ml)
        np.testing.assert_allclose(lesion.centroid, centroid, atol=1e-6)
        assert lesion.suv is not None
        assert lesion.suv[:2] == pytest.approx(uptake, rel=1e-5)
        assert lesion.suv.mean <= lesion.suv.peak or lesion.suv.peak <= lesion.suv.maximum


def uniform(like: sitk.Image, **shift: Any) -> sitk.Image:
    """SUV 1 wherever `like` is."""
    return volume(np.ones(like.GetSize()[::-1], np.float32), like.GetSpacing(), **shift)


def test_probability_is_the_mean_over_the_lesions_own_voxels_and_class() -> None:
    """A tumour of 4 x 5 x 6 voxels, half of it at 0.9 and half at 0.5."""
    labels = three_lesions()
    probabilities = np.zeros((2, *SHAPE), np.float32)
    probabilities[0, 4:6, 4:9, 4:10], probabilities[0, 6:8, 4:9, 4:10] = 0.9, 0.5
    probabilities[1][labels == 2] = 0.6
    mask = volume(labels, (2, 2, 3))
    found = described(mask, uniform(mask), probabilities=probabilities)
    assert [one.probability for one in found] == pytest.approx([0.7, 0.6, 0.6])


def test_agreement_is_the_mean_vote_for_the_lesions_class() -> None:
    """On the mask's lattice one of the tumour's 120 voxels has 0.4; on a coarser one the nearest counts."""
    labels = three_lesions()
    mask = volume(labels, (2, 2, 3))
    own = Grid(mask.GetSize(), (2.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    votes = np.zeros((2, *SHAPE), np.float32)
    votes[0][labels == 1], votes[1][labels == 2] = 1, 0.6
    votes[0, 4, 4, 4] = 0.4
    found = described(mask, uniform(mask), votes=[votes], grids=[own])
    assert [one.agreement for one in found] == pytest.approx([119.4 / 120, 0.6, 0.6])
    # Voxels of 10 mm: the tumour's 8 to 18 mm along x lie nearest to 10 up to 14 mm (4 of 6), then to 20 mm.
    coarse = Grid((6, 5, 6), (10.0, 10.0, 10.0), (0.0, 0.0, 0.0))
    halves = np.zeros((2, 6, 5, 6), np.float32)
    halves[0, ..., :2], halves[0, ..., 2:] = 1, 0.25
    (tumour, *_) = described(mask, uniform(mask), votes=[halves], grids=[coarse])
    assert tumour.agreement == pytest.approx((4 + 2 * 0.25) / 6)


def test_a_single_member_agrees_with_nobody_and_beside_the_pet_there_is_no_uptake() -> None:
    mask = volume(three_lesions(), (2, 2, 3))
    for one in described(mask, uniform(mask, origin=(500.0, 0.0, 0.0))):
        assert one.agreement is None
        assert one.suv is None
        assert one.row["agreement"] == one.row["suv_max"] == one.row["suv_peak"] == ""


def test_the_nearest_face_is_measured_from_the_outermost_voxel_in_the_cube_that_holds_it_deepest() -> None:
    """At 2 x 2 x 3 mm the tumour's voxels span 8 to 18, 8 to 16 and 12 to 21 mm in x, y and z."""
    mask = volume(three_lesions(), (2, 2, 3))
    pet = uniform(mask)
    # Voxel edges from -2 to 58 mm in each axis: 10 mm on the low side in x and y.
    wide = Grid.centred((28, 28, 28), (60,) * 3, (1.0, 1.0, 1.0))
    assert described(mask, pet, grids=[wide])[0].distance_to_roi_edge_mm == pytest.approx(10)
    # From -11 to 25 mm in each axis: 4 mm above the tumour in z.
    low = Grid.centred((7, 7, 7), (36,) * 3, (1.0, 1.0, 1.0))
    assert described(mask, pet, grids=[low])[0].distance_to_roi_edge_mm == pytest.approx(4)
    # Of both: voxels at x = 8 lie 10 mm deep in one and 17 mm in the other, at z = 21 mm 23 and 4 mm, and the
    # worst, at x = 8, y = 8, z = 21 mm, 10 and 4 mm.
    assert described(mask, pet, grids=[low, wide])[0].distance_to_roi_edge_mm == pytest.approx(10)


def lesion(number: int = 1, **changes: Any) -> Lesion:
    usual = {"name": "GTVp", "volume_ml": 2.0, "suv": Uptake(9.0, 5.0, 7.0), "centroid": (0.0, 0.0, 0.0)}
    return Lesion(
        number, **(usual | {"probability": 0.9, "agreement": 0.95, "distance_to_roi_edge_mm": 30.0} | changes)
    )


@pytest.mark.parametrize(
    ("lesions", "settings", "reasons"),
    [
        ([lesion()], {"lesion_ml_outside_roi": 0.0}, []),
        ([lesion(agreement=None)], {}, []),
        ([], {}, ["no lesion found"]),
        ([lesion()], {"notes": ["no head: x", "nothing coarse: y"]}, ["no head: x", "nothing coarse: y"]),
        ([lesion()], {"lesion_ml_outside_roi": 0.09}, []),
        ([lesion()], {"lesion_ml_outside_roi": 1.234}, ["1.23 ml of coarse lesion outside the ROI"]),
        (
            [lesion(), lesion(2, distance_to_roi_edge_mm=4.9)],
            {},
            ["less than 5 mm from the ROI's edge: lesion 2"],
        ),
        (
            [lesion(agreement=0.6), lesion(2, agreement=0.7), lesion(3, agreement=0.1)],
            {},
            ["members disagree: lesions 1, 3"],
        ),
        (
            [lesion(distance_to_roi_edge_mm=0.0, agreement=0.5)],
            {"notes": ["no head: x"]},
            ["no head: x", "less than 5 mm from the ROI's edge: lesion 1", "members disagree: lesion 1"],
        ),
    ],
)
def test_reasons_to_review_a_case_are_in_words(
    lesions: list[Lesion], settings: dict[str, Any], reasons: list[str]
) -> None:
    assert review_reasons(lesions, **settings) == reasons


def test_a_row_says_everything_in_its_own_unit() -> None:
    one = lesion(2, name="GTVn", centroid=(-1.25, 2.0, 300.06), agreement=2 / 3)
    assert list(one.row) == COLUMNS[1:]
    assert ";".join(one.row.values()) == "2;GTVn;2.000;9.00;5.00;7.00;-1.2;2.0;300.1;0.900;0.667;30.0"
