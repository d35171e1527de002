"""Head masks from anatomy alone, against the true heads of synthetic bodies, and on real scans."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from posed import posed

from hnseg.data.heads.propose import CUT, ENDS, NO_SKULL, propose_head
from hnseg.data.phantom import make_case
from hnseg.data.phantom.scanner import NAMES, OBLIQUE
from hnseg.imaging.grid import coarse_grid
from hnseg.imaging.images import read_image, same_grid
from hnseg.imaging.masks import mask_bounds


@pytest.fixture(scope="module")
def upright():
    return posed()


def box_iou(mask, truth):
    """Intersection over union of the boxes around two masks."""
    (low, high), (true_low, true_high) = mask_bounds(mask), mask_bounds(truth)
    common = np.prod(np.clip(np.minimum(high, true_high) - np.maximum(low, true_low), 0, None))
    return common / (np.prod(high - low) + np.prod(true_high - true_low) - common)


def lesions_in_roi(case, head):
    """Whether the coarse ROI that hangs from `head` holds every lesion voxel."""
    low, high = (f(coarse_grid(head, [144] * 3, [2.0] * 3).corners, axis=0) for f in (np.min, np.max))
    index = np.argwhere(sitk.GetArrayViewFromImage(case.label))[:, ::-1].tolist()
    points = np.array([case.label.TransformIndexToPhysicalPoint(voxel) for voxel in index])
    return bool(((points >= low) & (points <= high)).all())


def agreement(cases):
    """Box IoU and whether the coarse ROI holds the lesions, for cases of a phantom cohort."""
    heads = [propose_head(case.ct).mask for case in cases]
    ious = [box_iou(head, case.head) for head, case in zip(heads, cases, strict=True)]
    return np.array(ious), np.array([lesions_in_roi(c, h) for c, h in zip(cases, heads, strict=True)])


def test_the_box_and_the_coarse_roi_are_right_in_every_centres_scans():
    ious, held = agreement([make_case(index, 3, center=name) for index, name in enumerate(NAMES)])
    assert ious.min() >= 0.8
    assert held.all()


@pytest.mark.slow
def test_the_box_and_the_coarse_roi_are_right_in_a_large_cohort():
    ious, held = agreement([make_case(index, seed) for seed in (11, 12) for index in range(40)])
    assert np.mean(ious >= 0.8) >= 0.95
    assert held.mean() >= 0.99


@pytest.mark.slow
def test_scans_of_the_real_size_and_whole_bodies():
    ious, held = agreement([make_case(n, 5, "full", center=name) for n, name in enumerate(("CHUS", "CHUM"))])
    assert ious.min() >= 0.8
    assert held.all()


def test_the_outline_of_a_whole_head_is_right_and_raises_no_flag(upright):
    proposal = propose_head(upright.ct)
    assert proposal.flags == ()
    assert proposal.mask.GetPixelID() == sitk.sitkUInt8
    proposed, true = (sitk.GetArrayViewFromImage(mask) for mask in (proposal.mask, upright.head))
    assert set(np.unique(proposed)) == {0, 1}
    assert 2 * np.sum(proposed & true) / (proposed.sum() + true.sum()) > 0.95  # Dice


@pytest.mark.parametrize(
    "pose",
    [
        {"angles": (0.45, 0.0, 0.0)},
        {"angles": (-0.45, 0.0, 0.0)},
        {"angles": (0.0, 0.45, 0.0)},
        {"angles": (0.0, 0.0, 0.5)},
        {"angles": (0.3, -0.3, 0.3)},
        {"offset": (60.0, -25.0, 0.0)},
        {"spacing": (1.5, 1.5, 8.0)},
        {"bottom": -235.0},
    ],
    ids=["bent", "thrown back", "tilted", "turned", "all", "shifted", "thick slices", "head only"],
)
def test_postures_and_protocols(pose):
    scan = posed(**pose)
    assert box_iou(propose_head(scan.ct).mask, scan.head) >= 0.8


@pytest.mark.parametrize(
    ("cut", "flag"),
    [
        ({"top": -30.0}, CUT),
        ({"top": -80.0}, CUT),
        ({"top": -50.0, "direction": OBLIQUE}, CUT),
        ({"bottom": -150.0}, ENDS),
    ],
)
def test_what_the_scan_holds_of_a_head_truncation_is_marked_and_flagged(cut, flag):
    scan = posed(**cut)
    proposal = propose_head(scan.ct)
    assert flag in proposal.flags
    assert box_iou(proposal.mask, scan.head) >= 0.8


def test_a_scan_that_starts_at_the_chin_has_no_head(upright):
    proposal = propose_head(posed(top=upright.chin - 5).ct)
    assert proposal.flags == (NO_SKULL,)
    assert not proposal.found


def test_air_and_a_bag_of_water_are_no_heads(upright):
    air = upright.altered(lambda hu, z, y, x: hu.fill(-1000)).ct
    water = upright.altered(lambda hu, z, y, x: np.copyto(hu, np.where(hu > -400, 0, -1000))).ct
    assert propose_head(air).flags == propose_head(water).flags == (NO_SKULL,)


def test_the_storage_of_the_image_does_not_matter(upright):
    bounds = mask_bounds(propose_head(upright.ct).mask)
    flipped = sitk.Flip(upright.ct, [True, False, True], flipAboutOrigin=False)
    for stored in (flipped, sitk.PermuteAxes(upright.ct, [2, 0, 1]), sitk.DICOMOrient(upright.ct, "RAS")):
        mask = propose_head(stored).mask
        assert same_grid(mask, stored)
        np.testing.assert_allclose(mask_bounds(mask), bounds, atol=4.0)


def test_arms_above_and_beside_the_head_do_not_belong_to_it():
    scan = posed(top=120.0)

    def raise_arms(hu, z, y, x):
        for side in (-1, 1):
            around = np.hypot(x - side * 135, y - 10)
            hu[(around < 42) & (z > -260)] = 50
            hu[(around < 12) & (z > -260)] = 800
        forearms = np.hypot(y - 10, z - 70)  # folded over the head
        hu[np.broadcast_to((forearms < 38) & (np.abs(x) < 150), hu.shape)] = 50
        hu[np.broadcast_to((forearms < 10) & (np.abs(x) < 150), hu.shape)] = 800

    assert box_iou(propose_head(scan.altered(raise_arms).ct).mask, scan.head) >= 0.8


def test_a_head_rest_and_a_mask_on_the_skin_do_not_belong_to_it(upright):
    def fix(hu, z, y, x):
        shell = np.abs(np.hypot(x, y + 10) - 128) < 3  # a bowl of carbon under and beside the head
        hu[np.broadcast_to(shell & (y > 0) & (z > -260), hu.shape)] = 150
        wings = (np.abs(y - 109) < 3) & (np.abs(x) < 150) & (z > -260)  # a plate that touches the occiput
        hu[np.broadcast_to(wings, hu.shape)] = 150

    assert box_iou(propose_head(upright.altered(fix).ct).mask, upright.head) >= 0.8


def test_streaks_of_a_filling_do_not_move_the_chin(upright):
    rng = np.random.default_rng(0)

    def fill(hu, z, y, x):
        angle = np.arctan2(y + 60, x)
        streaks = sum(rng.normal(0, 250) * np.cos(n * angle + rng.uniform(0, 6)) for n in range(4, 20))
        near = (np.abs(z + 190) < 8) & (hu > -400)
        hu[near] = np.clip((hu + np.broadcast_to(streaks, hu.shape))[near], -1000, 3000)
        hu[np.broadcast_to((np.hypot(x - 30, y + 55) < 8) & (np.abs(z + 190) < 8), hu.shape)] = 3000

    assert box_iou(propose_head(upright.altered(fill).ct).mask, upright.head) >= 0.8


def test_a_real_scan_that_ends_at_the_chin_has_no_head():
    root = os.environ.get("HNSEG_OPEN_DATA")
    if not root:
        pytest.skip("HNSEG_OPEN_DATA is not set")
    for name in ("ccth", "ccth_neck"):
        proposal = propose_head(read_image(Path(root) / name / "CCTH-A01" / "CCTH-A01__CT.nii.gz"))
        assert proposal.flags == (NO_SKULL,)
        assert not proposal.found
