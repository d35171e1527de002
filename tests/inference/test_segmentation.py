"""What the cascade hands back beside the mask: lesions, a reason to look first, maps that were asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, pet_image
from members import DECISION, card, make_bundle, make_cascade
from scipy import stats

from hnseg.inference.cascade import Segmentation

# What has an SUV above 4 is a tumour; the same, less surely; a node. And one that sees the same everywhere.
TUMOUR = {"weights": [[0.0, 0.0], [0.0, 40.0], [0.0, 0.0]], "biases": [0.0, -8.0, -30.0]}
LESS_SURE = {"weights": [[0.0, 0.0], [0.0, 20.0], [0.0, 0.0]], "biases": [0.0, -4.0, -30.0]}
NODE = {"weights": [[0.0, 0.0], [0.0, 0.0], [0.0, 5.0]], "biases": [0.0, -30.0, -1.0]}
BLIND = {"weights": [[0.0, 0.0]] * 3, "biases": np.log([0.4, 0.1, 0.5]).tolist()}
# No CT voxel lies midway between two of it, where rounding would decide.
ROI: dict[str, Any] = {"placement": "scan", "size": [25, 25, 24], "spacing": [3.0] * 3}


def segment(
    tmp_path: Path, *settings: dict[str, Any], rules: dict[str, Any] | None = None, **asked: Any
) -> Segmentation:
    cards = [
        card("fine", "pointwise", one, grid=ROI, name=f"member_{n}", decision=DECISION | (rules or {}))
        for n, one in enumerate(settings)
    ]
    cascade = make_cascade(make_bundle(tmp_path, *cards), **asked)
    return cascade(ct_image(), pet_image())


@pytest.mark.parametrize("resample_output", ["probabilities", "labels"])
def test_the_cascade_describes_what_its_members_found(tmp_path: Path, resample_output: str) -> None:
    """The PET's one hot spot of 12 x 12 x 15 mm has SUV 12 and its middle at (29, 29, 46) mm."""
    result = segment(tmp_path, TUMOUR, LESS_SURE, NODE, rules={"resample_output": resample_output})
    (found,) = result.lesions
    assert found.name == "GTVp"
    mask = sitk.GetArrayFromImage(result.mask)
    assert found.volume_ml == pytest.approx((mask == 1).sum() * 12 / 1000)
    np.testing.assert_allclose(found.centroid, (29, 29, 46), atol=1)
    assert found.suv is not None
    assert found.suv.maximum == found.suv.peak == pytest.approx(12)
    # Two of three see a tumour wherever the uptake is above 4; voxels at the rim may lie nearer to others.
    assert found.agreement == pytest.approx(2 / 3, abs=0.04)
    # The ROI of 75 x 75 x 72 mm about the CT's middle at (39, 39, 43.5) mm begins at 1.5, 1.5 and 7.5 mm.
    low = np.argwhere(mask == 1).min(axis=0)[::-1] * (2, 2, 3)
    assert found.distance_to_roi_edge_mm == pytest.approx((low - (1.5, 1.5, 7.5)).min())


def test_members_that_disagree_put_a_case_first(tmp_path: Path) -> None:
    agreed = segment(tmp_path / "agreed", TUMOUR, TUMOUR)
    assert agreed.lesions[0].agreement == pytest.approx(1, abs=0.05)
    assert agreed.review_reasons == []
    split = segment(tmp_path / "split", TUMOUR, NODE)
    assert split.review_reasons == ["members disagree: lesion 1"]
    assert segment(tmp_path / "one", TUMOUR).lesions[0].agreement is None


def voxels(result: Segmentation) -> dict[str, np.ndarray]:
    for _, image in result.volumes():
        for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, part)() == getattr(result.mask, part)()
    return {name: sitk.GetArrayFromImage(image) for name, image in result.volumes()}


@pytest.mark.parametrize("resample_output", ["probabilities", "labels"])
def test_maps_come_back_on_the_cts_grid_where_they_are_asked_for(
    tmp_path: Path, resample_output: str
) -> None:
    """In the hot spot members say (0, 1, 0) and (0.4, 0.1, 0.5): (0.2, 0.55, 0.25) together."""
    rules = {"resample_output": resample_output}
    plain = segment(tmp_path / "plain", TUMOUR, BLIND, rules=rules)
    assert voxels(plain) == {}
    asked = segment(tmp_path / "asked", TUMOUR, BLIND, rules=rules, probabilities=True, uncertainty=True)
    np.testing.assert_array_equal(
        sitk.GetArrayViewFromImage(plain.mask), sitk.GetArrayViewFromImage(asked.mask)
    )
    maps = voxels(asked)
    assert list(maps) == ["probability_GTVp", "probability_GTVn", "entropy", "mutual_information"]
    spot = (15, 14, 14)  # (z, y, x): 45, 28 and 28 mm
    together, blind = stats.entropy([0.2, 0.55, 0.25], base=3), stats.entropy([0.4, 0.1, 0.5], base=3)
    expected = [0.55, 0.25, together, together - blind / 2]
    assert [float(values[spot]) for values in maps.values()] == pytest.approx(expected, abs=1e-4)
    for values in maps.values():  # the ROI begins 1.5 mm from the CT's first voxel
        assert not values[:, 0].any()
        assert values[:, 2:-2, 2:-2].max() > 0
    only = segment(tmp_path / "only", TUMOUR, uncertainty=True)
    assert list(voxels(only)) == ["entropy", "mutual_information"]
    assert voxels(only)["mutual_information"].max() < 1e-6
