"""A stage is a grid, a rule that places it, and its classes; its configuration says which."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from fabricate import ct_image, label_image, volume

from hnseg import geometry
from hnseg.stage import Stage

CONF = Path(__file__).parents[1] / "conf" / "stage"


def stage(placement: str, **changes) -> Stage:
    return Stage("any", (8, 10, 12), (2.0, 3.0, 4.0), placement, **changes)


def test_the_paper_s_stages_are_what_the_configuration_holds():
    stages = {name: Stage.from_dict(yaml.safe_load((CONF / f"{name}.yaml").read_text())) for name in
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
    assert stage("top_of_scan").grid(ct) == geometry.top_of_scan_grid(ct, size, spacing)
    assert stage("scan").grid(ct) == geometry.scan_grid(ct, size, spacing)
    assert stage("below_head", top=0.5).grid(ct, label) == geometry.coarse_grid(label, size, spacing, 0.5)
    np.testing.assert_allclose(stage("lesions").grid(ct, label).center, geometry.centroid(label))


@pytest.mark.parametrize("placement", ["below_head", "lesions"])
def test_a_placement_without_its_reference_says_so(placement):
    empty = sitk.Image(4, 4, 4, sitk.sitkUInt8)
    for reference in (None, empty):
        with pytest.raises(ValueError, match=r"no (head|lesion)|empty"):
            stage(placement).grid(ct_image(), reference)


def test_lengths_become_whole_voxels_rounded_up():
    assert stage("scan").voxels(12.0) == (6, 4, 3)
    assert stage("scan").voxels(12.1) == (7, 5, 4)
    assert stage("scan").voxels(0.0) == (0, 0, 0)


def test_a_stage_survives_its_plain_form():
    one = stage("lesions", classes=("GTVp",), antialias=True)
    fields = {"name": "any", "size": [8, 10, 12], "spacing": [2.0, 3.0, 4.0], "placement": "lesions",
              "classes": ["GTVp"], "antialias": True}  # fmt: skip
    assert Stage.from_dict(fields) == one
    assert one.shape == (12, 10, 8)
    assert hash(one) == hash(Stage.from_dict(fields))


def test_the_lesions_of_both_classes_place_the_fine_roi():
    label = np.zeros((10, 10, 10), np.uint8)
    label[2, 2, 2], label[8, 8, 8] = 1, 2
    grid = stage("lesions").grid(ct_image(), volume(label, (2, 2, 2)))
    np.testing.assert_allclose(grid.center, [10, 10, 10])
