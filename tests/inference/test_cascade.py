"""The whole cascade on fabricated cases: where things end up, and what happens when nothing is found."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from members import card, make_bundle, make_cascade, never
from patient import HEAD, LESION, NODE, ORIENTATIONS, RADIUS, TUMOUR, filled, make_ct, make_pet, points

from hnseg.errors import HnsegError
from hnseg.models.bundle import Bundle


@pytest.fixture
def detectors(tmp_path: Path) -> Bundle:
    return make_bundle(
        tmp_path,
        card("localiser", "pointwise", HEAD),
        card("coarse", "pointwise", LESION, grid={"top": 1.0, "size": [36] * 3}),
        card("fine", "pointwise", LESION, grid={"size": [40] * 3}),
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_detector_finds_the_lesions_where_they_are(detectors: Bundle, orientation: str) -> None:
    ct = make_ct(*ORIENTATIONS[orientation])
    result = make_cascade(detectors)(ct, make_pet())
    assert not any(fallback.startswith(("no head", "nothing coarse")) for fallback in result.notes)
    mask = sitk.GetArrayFromImage(result.mask)
    where = points(ct)
    slack = float(np.linalg.norm(ct.GetSpacing())) / 2 + 1.5  # half a voxel's diagonal, and half a fine voxel
    for label, centre in ((1, TUMOUR), (2, NODE)):
        distance = np.linalg.norm(where - centre, axis=-1)
        assert (mask[distance < RADIUS - slack] == label).all()
        assert (distance[mask == label] < RADIUS + slack).all()
        found = where[mask == label].mean(0)
        np.testing.assert_allclose(found, centre, atol=1.0)


@pytest.mark.parametrize("orientation", ["identity", "sagittal", "oblique"])
def test_the_mask_lies_on_the_cts_grid_exactly(detectors: Bundle, orientation: str) -> None:
    ct = make_ct(*ORIENTATIONS[orientation])
    mask = make_cascade(detectors)(ct, make_pet()).mask
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == ct.GetSize()
    assert mask.GetSpacing() == ct.GetSpacing()
    assert mask.GetOrigin() == ct.GetOrigin()
    assert mask.GetDirection() == ct.GetDirection()
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) == {0, 1, 2}


def test_untrained_members_of_all_kinds_run_through(tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path,
        card("localiser", "plainconv"),
        card("coarse", "plainconv"),
        card("fine", "resenc", input={"cte": True}),
        card("fine", "segresnet"),
    )
    ct = make_ct(*ORIENTATIONS["oblique"])
    result = make_cascade(bundle, mirror=True)(ct, make_pet())
    assert list(result.seconds) == ["resample", "localiser", "coarse", "fine", "back"]
    assert list(result.grids) == ["localiser", "coarse", "fine"]
    assert result.mask.GetSize() == ct.GetSize()


@pytest.mark.parametrize(("until", "labels"), [("localiser", {0, 1}), ("coarse", {0, 1, 2})])
def test_an_earlier_stage_can_be_the_last(detectors: Bundle, until: str, labels: set[int]) -> None:
    ct = make_ct(*ORIENTATIONS["identity"])
    result = make_cascade(detectors, last_stage=until)(ct, make_pet())
    assert list(result.grids)[-1] == list(result.seconds)[-2] == until
    mask = sitk.GetArrayFromImage(result.mask)
    assert set(np.unique(mask)) == labels
    if until == "localiser":  # what is denser than -100 HU, as deep as the localiser's grid reaches
        body = sitk.GetArrayFromImage(ct) > -100
        deep = points(ct)[..., 2] > points(ct)[..., 2].max() - 16 * 12 + 12
        assert (mask[deep] == body[deep]).mean() > 0.95


def test_given_heads_stand_for_the_head_stage(tmp_path: Path) -> None:
    """A mask places the coarse ROI; an empty one is no head; without one the bundle's localiser is asked."""
    ct = make_ct(*ORIENTATIONS["identity"])
    ball = np.linalg.norm(points(ct) - (10, 0, -100), axis=-1) < 20  # 33 ml: drawn, so it is a head
    for name, head in (("drawn", ball), ("empty", ball & False)):
        sitk.WriteImage(sitk.Cast(filled(ct, head), sitk.sitkUInt8), str(tmp_path / f"{name}.nii.gz"))
    grid = {"top": 0.5, "size": [36] * 3}
    coarse = card("coarse", "pointwise", LESION, grid=grid)
    without = make_cascade(make_bundle(tmp_path / "a", coarse), last_stage="coarse", head_masks=tmp_path)
    drawn = without(ct, make_pet(), "drawn")
    (cube,) = drawn.grids["coarse"]
    assert not drawn.notes
    np.testing.assert_allclose(cube.center, (10, 0, -100 - 36 * 6 / 2), atol=2.1)
    assert list(drawn.grids) == ["coarse"]
    assert "no head" in without(ct, make_pet(), "empty").notes[0]
    with pytest.raises(HnsegError, match=r"other\.nii\.gz: no such head mask.*no localiser"):
        without(ct, make_pet(), "other")
    bundle = make_bundle(tmp_path / "b", coarse, card("localiser", "pointwise", HEAD))
    having = make_cascade(bundle, last_stage="coarse", head_masks=tmp_path)
    assert list(having(ct, make_pet(), "other").grids) == ["localiser", "coarse"]
    assert having(ct, make_pet(), "drawn").grids["coarse"] == drawn.grids["coarse"]


def test_a_bundle_without_the_stage_asked_for_is_told(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, card("localiser", "pointwise", never(1, 1)))
    with pytest.raises(HnsegError, match=r"last_stage=fine.*only localiser"):
        make_cascade(bundle)


@pytest.mark.parametrize(("missing", "placed"), [("coarse", "fine"), ("localiser", "coarse")])
def test_a_bundle_without_the_stage_that_places_another_is_told(
    tmp_path: Path, missing: str, placed: str
) -> None:
    """A head mask must not be taken for lesions, nor every case fall back."""
    cards = [card("localiser", "pointwise", never(1, 1)), card("coarse", "pointwise", never())]
    cards = [one for one in cards if one["stage"]["name"] != missing]
    bundle = make_bundle(tmp_path, *cards, card("fine", "pointwise", never()))
    with pytest.raises(HnsegError, match=f"no {missing} member.*{placed} ROI"):
        make_cascade(bundle)


@pytest.mark.parametrize("slices", [2, 3])
def test_a_scan_of_few_slices_is_no_crash(tmp_path: Path, slices: int) -> None:
    grids = {"antialias": True}
    bundle = make_bundle(
        tmp_path,
        card("localiser", "pointwise", never(1, 1), grid=grids),
        card("coarse", "pointwise", never(), grid=grids),
        card("fine", "pointwise", never(), grid=grids),
    )
    ct = make_ct((64, 56, slices), (3.5, 3.5, 30.0), np.eye(3))
    assert not sitk.GetArrayFromImage(make_cascade(bundle)(ct, make_pet()).mask).any()
