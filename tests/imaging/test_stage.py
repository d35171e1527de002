"""A stage is a grid, a rule that places it, and its classes; its configuration says which."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from fabricate import ct_image, label_image, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from hnseg.card import Stage
from hnseg.imaging.grid import coarse_grid, scan_grid, top_of_scan_grid
from hnseg.imaging.masks import centroid
from hnseg.imaging.stage import place_grid

CONF = Path(__file__).parents[2] / "conf" / "stage"


def stage(placement: str, **changes) -> Stage:
    return Stage("fine", (8, 10, 12), (2.0, 3.0, 4.0), placement, **changes)


def test_the_paper_s_stages_are_what_the_configuration_holds():
    stages = {name: Stage(**yaml.safe_load((CONF / f"{name}.yaml").read_text())) for name in
              ("head", "coarse", "fine")}  # fmt: skip
    assert stages["head"].shape == (128, 256, 256)
    assert np.multiply(stages["head"].size, stages["head"].spacing).tolist() == [512, 512, 384]
    assert np.multiply(stages["coarse"].size, stages["coarse"].spacing).tolist() == [288] * 3
    assert np.multiply(stages["fine"].size, stages["fine"].spacing).tolist() == [144] * 3
    assert [s.classes for s in stages.values()] == [("head",), ("GTVp", "GTVn"), ("GTVp", "GTVn")]
    assert stages["coarse"].top == 0.7


def test_each_placement_follows_its_rule():
    ct, label = ct_image(), label_image()
    size, spacing = (8, 10, 12), (2.0, 3.0, 4.0)
    assert place_grid(stage("top_of_scan"), ct) == top_of_scan_grid(ct, size, spacing)
    assert place_grid(stage("scan"), ct) == scan_grid(ct, size, spacing)
    assert place_grid(stage("below_head", top=0.5), ct, label) == coarse_grid(label, size, spacing, 0.5)
    # The centroid lies at (24.6, 22.6, 39.9) mm, corners of the label's voxels at 2k + 1 mm in x and y and
    # at 3k + 1.5 mm in z.
    np.testing.assert_allclose(place_grid(stage("lesions"), ct, label).center, (25, 23, 40.5))


@pytest.mark.parametrize("placement", ["below_head", "lesions"])
def test_a_placement_without_its_reference_says_so(placement):
    empty = sitk.Image(4, 4, 4, sitk.sitkUInt8)
    for reference in (None, empty):
        with pytest.raises(ValueError, match=r"no (head|lesion)|empty"):
            place_grid(stage(placement), ct_image(), reference)


def test_the_lesions_of_both_classes_place_the_fine_roi():
    label = np.zeros((10, 10, 10), np.uint8)
    label[2, 2, 2], label[8, 8, 8] = 1, 2
    grid = place_grid(stage("lesions"), ct_image(), volume(label, (2, 2, 2)))
    np.testing.assert_allclose(grid.center, [11, 11, 11])  # the corner behind the mean voxel at 10 mm


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), flips=st.integers(1, 200))
def test_a_mask_that_changes_moves_the_fine_roi_by_whole_voxels_or_not_at_all(seed, flips):
    """At the paper's scale: a mask with voxels of 2 mm, and fine voxels of 1 mm, two of which make one."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
    mask = (sum((a - c) ** 2 for a, c in zip(axes, rng.uniform(10, 30, 3), strict=True)) < 60).astype(
        np.uint8
    )
    changed = mask.copy()
    changed.ravel()[rng.choice(mask.size, flips, replace=False)] ^= 1
    fine = Stage("fine", (144, 144, 144), (1.0, 1.0, 1.0), "lesions")
    masks = [volume(m, (2, 2, 2), (-31.3, 4.7, 11.1)) for m in (mask, changed)]
    one, other = (place_grid(fine, ct_image(), m) for m in masks)
    steps = np.subtract(other.origin, one.origin) / 2
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)
    for grid, m in zip((one, other), masks, strict=True):
        assert np.abs(grid.center - centroid(m)).max() <= 1 + 1e-5
        # Its faces are faces of the mask's voxels: it holds a voxel whole or not at all.
        faces = (grid.corners - m.GetOrigin()) / 2 - 0.5
        np.testing.assert_allclose(faces, np.rint(faces), atol=1e-6)
