"""What the rules of a decision make of the whole cascade."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, pet_image
from members import DECISION, card, make_bundle, make_cascade, never
from patient import HEAD, LESION, NODE, ORIENTATIONS, RADIUS, TUMOUR, make_ct, make_pet

from hnseg.errors import HnsegError


def test_components_below_the_volume_floor_are_dropped(tmp_path: Path) -> None:
    """A sphere of 11.9 mm radius has 7 ml."""
    floors = {}
    for ml in (6.0, 8.0):
        decision = {"rule": "half", "min_component_ml": ml, "mirror": False}
        only = card(
            "fine", "pointwise", LESION, grid={"placement": "scan", "size": [60] * 3}, decision=decision
        )
        bundle = make_bundle(tmp_path / str(ml), only)
        mask = make_cascade(bundle)(make_ct(*ORIENTATIONS["identity"]), make_pet()).mask
        floors[ml] = set(np.unique(sitk.GetArrayFromImage(mask)))
    assert floors == {6.0: {0, 1, 2}, 8.0: {0}}


def small_cubes(**rules: object) -> list[dict]:
    """A detector whose fine cube of 48 mm cannot hold tumour and node, 62 mm apart."""
    return [
        card("localiser", "pointwise", HEAD),
        card("coarse", "pointwise", LESION, grid={"top": 1.0, "size": [36] * 3}),
        card("fine", "pointwise", LESION, grid={"size": [16] * 3}, decision=DECISION | rules),
    ]


def found_ml(mask: sitk.Image) -> list[float]:
    """Volume of each label 1, 2 in ml."""
    voxels = np.bincount(sitk.GetArrayFromImage(mask).ravel(), minlength=3)
    return list(voxels[1:] * np.prod(mask.GetSpacing()) / 1000)


def test_lesions_outside_one_cube_are_lost_and_several_cubes_find_them(tmp_path: Path) -> None:
    """Each lesion is a sphere of 7 ml; the cube between them cuts both."""
    ct = make_ct(*ORIENTATIONS["fine slices"])
    whole = [4 / 3 * np.pi * RADIUS**3 / 1000] * 2
    results = {}
    for cover in ("single", "multiple"):
        bundle = make_bundle(tmp_path / cover, *small_cubes(roi_cover=cover))
        results[cover] = make_cascade(bundle)(ct, make_pet())
    lost, covered = results["single"], results["multiple"]
    assert len(lost.grids["fine"]) == 1
    assert sum(found_ml(lost.mask)) < 0.5 * sum(whole)
    assert lost.lesion_ml_outside_roi is not None
    # What is outside by the coarse stage is about what the fine stage misses.
    assert lost.lesion_ml_outside_roi == pytest.approx(sum(whole) - sum(found_ml(lost.mask)), abs=2.0)
    assert len(covered.grids["fine"]) == 2
    assert covered.lesion_ml_outside_roi == 0
    assert found_ml(covered.mask) == pytest.approx(whole, rel=0.15)
    tumour, node = sorted(covered.grids["fine"], key=lambda grid: grid.center[0])
    np.testing.assert_allclose(tumour.center, TUMOUR, atol=3)
    np.testing.assert_allclose(node.center, NODE, atol=3)


@pytest.mark.parametrize("resample_output", ["probabilities", "labels"])
def test_what_comes_back_is_probabilities_or_labels(tmp_path: Path, resample_output: str) -> None:
    """A network that thresholds at SUV 4, on cubes of 12 mm: SimpleITK brings its map or its labels back."""
    grid = {"placement": "scan", "size": [16] * 3, "spacing": [12.0] * 3}
    soft = {"weights": [[0.0, 0.0], [0.0, 20.0], [0.0, 0.0]], "biases": [0.0, -4.0, -99.0]}
    rules = DECISION | {"rule": "argmax", "resample_output": resample_output}
    bundle = make_bundle(tmp_path, card("fine", "pointwise", soft, grid=grid, decision=rules))
    ct, pet = make_ct(*ORIENTATIONS["oblique"]), make_pet()
    result = make_cascade(bundle)(ct, pet)
    (cube,) = result.grids["fine"]
    reference = cube.image(np.zeros(cube.shape, np.float32))
    sampled = sitk.GetArrayFromImage(sitk.Resample(pet, reference, sitk.Transform(), sitk.sitkBSpline))
    tumour = 1 / (1 + np.exp(4 - np.clip(sampled, 0, 20)))
    values, how = (tumour, sitk.sitkLinear) if resample_output == "probabilities" else (tumour > 0.5, None)
    back = sitk.Resample(
        cube.image(values.astype(np.float32)), ct, sitk.Transform(), how or sitk.sitkNearestNeighbor
    )
    expected = sitk.GetArrayFromImage(back) > 0.5
    assert expected.sum() > 10
    assert (expected != (sitk.GetArrayFromImage(result.mask) == 1)).sum() <= 0.01 * expected.sum()


def test_nodes_without_uptake_are_dropped(tmp_path: Path) -> None:
    """The PET's spots have SUV 12 and fall to 4 at the lesions' rim: their SUVpeak lies between."""
    kept = {}
    for bound in (5.0, 12.0):
        cards = small_cubes(roi_cover="multiple", node_suv_peak=bound)
        cascade = make_cascade(make_bundle(tmp_path / str(bound), *cards))
        mask = cascade(make_ct(*ORIENTATIONS["oblique"]), make_pet()).mask
        kept[bound] = set(np.unique(sitk.GetArrayFromImage(mask)))
    assert kept == {5.0: {0, 1, 2}, 12.0: {0, 1}}


@pytest.mark.parametrize("before", ["localiser", "coarse"])
def test_without_a_fallback_nothing_found_ends_the_case(tmp_path: Path, before: str) -> None:
    cards = small_cubes(fallback="fail")
    silent = {"localiser": never(1, 1), "coarse": never()}[before]
    cards = [card(before, "pointwise", silent) if c["stage"]["name"] == before else c for c in cards]
    cascade = make_cascade(make_bundle(tmp_path, *cards))
    with pytest.raises(HnsegError, match=f"the {before} stage found nothing"):
        cascade(make_ct(*ORIENTATIONS["identity"]), make_pet())


@pytest.mark.parametrize(
    "rules",
    [{"resample_output": "both"}, {"resample_output": "labels", "roi_cover": "multiple"}],
)
def test_rules_that_cannot_be_followed_are_refused_before_the_first_case(tmp_path: Path, rules: dict) -> None:
    with pytest.raises(HnsegError, match=rf"decision\.resample_output={rules['resample_output']}"):
        make_cascade(make_bundle(tmp_path, *small_cubes(**rules)))


# Everywhere 0.43 for GTVp: the likeliest class, and below one half.
LIKELY = {"weights": [[0.0, 0.0]] * 3, "biases": [0.3, 0.5, 0.0]}
WHOLE = {"placement": "scan", "size": [16] * 3, "spacing": [6.0] * 3}
RULES = DECISION | {"rule": "half", "min_component_ml": 1e6, "resample_output": "labels", "mirror": True}


@pytest.mark.parametrize(("until", "label"), [("coarse", 1), ("fine", 0)])
def test_the_likeliest_class_places_and_the_recipe_s_rule_decides(
    tmp_path: Path, until: str, label: int
) -> None:
    coarse = card("coarse", "pointwise", LIKELY, grid=WHOLE, decision=RULES)
    fine = card("fine", "pointwise", LIKELY, grid=WHOLE, decision=RULES)
    cascade = make_cascade(make_bundle(tmp_path, coarse, fine), last_stage=until)
    assert cascade.decision.mirror is (until == "fine")
    mask = sitk.GetArrayFromImage(cascade(ct_image(), pet_image()).mask)
    assert np.unique(mask[5:-5, 10:-10, 10:-10]).tolist() == [label]
