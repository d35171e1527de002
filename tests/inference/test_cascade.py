"""The whole cascade on fabricated cases: where things end up, and what happens when nothing is found."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from members import DECISION, card, make_bundle, never, rotation

from hnseg.errors import HnsegError
from hnseg.inference.cascade import Cascade
from hnseg.models.bundle import Bundle

CPU = torch.device("cpu")
# In LPS mm: a tumour on the right, below and behind it a node on the left, in a body of 180 x 150 mm.
TUMOUR, NODE, BODY = np.array((-30.0, 5.0, -160.0)), np.array((25.0, 20.0, -185.0)), np.array((90.0, 75.0))
SIGMA, PEAK, THRESHOLD = 8.0, 12.0, 4.0
RADIUS = SIGMA * np.sqrt(2 * np.log(PEAK / THRESHOLD))  # where the uptake falls to the threshold: 11.9 mm
NODE_HU = 120.0

# Head: what is denser than -100 HU. Lesions: SUV above 4, a node where the CT is above 70 HU.
HEAD = {"weights": [[0.0], [100.0]], "biases": [0.0, 50.0]}
LESION = {"weights": [[0.0, 0.0], [0.0, 4000.0], [100.0, 4000.0]], "biases": [0.0, -800.0, -835.0]}


def points(image: sitk.Image) -> np.ndarray:
    """The position of every voxel in mm: (z, y, x, 3)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1).transpose(
        2, 1, 0, 3
    )
    turn = np.array(image.GetDirection()).reshape(3, 3)
    return index * image.GetSpacing() @ turn.T + image.GetOrigin()


def blank(size: tuple[int, ...], spacing: tuple[float, ...], direction: np.ndarray) -> sitk.Image:
    """An image whose middle lies at (0, 0, -150) mm."""
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(direction.ravel())
    image.SetOrigin(np.array((0, 0, -150.0)) - direction @ ((np.array(size) - 1) / 2 * spacing))
    return image


def filled(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    array = sitk.GetImageFromArray(values.astype(np.float32))
    array.CopyInformation(image)
    return array


def make_ct(size: tuple[int, ...], spacing: tuple[float, ...], direction: np.ndarray) -> sitk.Image:
    image = blank(size, spacing, direction)
    where = points(image)
    hu = np.where((np.abs(where[..., :2]) < BODY).all(-1), 20.0, -1000.0)
    hu[np.linalg.norm(where - NODE, axis=-1) < 2 * RADIUS] = NODE_HU
    return filled(image, hu)


def make_pet() -> sitk.Image:
    image = blank((60, 50, 64), (4.0, 4.0, 5.0), np.eye(3))
    where = points(image)
    distances = np.stack([np.linalg.norm(where - centre, axis=-1) for centre in (TUMOUR, NODE)])
    return filled(image, (PEAK * np.exp(-((distances / SIGMA) ** 2) / 2)).sum(0))


ORIENTATIONS = {
    "identity": ((64, 56, 80), (3.5, 3.5, 4.0), np.eye(3)),
    "flipped": ((64, 56, 80), (3.5, 3.5, 4.0), np.diag((-1.0, -1.0, 1.0))),
    "feet first": ((64, 56, 80), (3.5, 3.5, 4.0), np.diag((1.0, -1.0, -1.0))),
    "sagittal": ((56, 80, 64), (3.5, 4.0, 3.5), np.array([[0, 0, -1.0], [1, 0, 0], [0, -1.0, 0]])),
    "oblique": ((64, 56, 80), (3.5, 3.5, 4.0), rotation(12, 0) @ rotation(-8, 1) @ rotation(15, 2)),
    "fine slices": ((100, 90, 150), (2.2, 2.2, 2.1), rotation(10, 2)),
}


@pytest.fixture
def detectors(pointwise: None, tmp_path: Path) -> Bundle:
    return make_bundle(
        tmp_path,
        card("head", "pointwise", HEAD),
        card("coarse", "pointwise", LESION, grid={"top": 1.0, "size": [36] * 3}),
        card("fine", "pointwise", LESION, grid={"size": [40] * 3}),
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_detector_finds_the_lesions_where_they_are(detectors: Bundle, orientation: str) -> None:
    ct = make_ct(*ORIENTATIONS[orientation])
    result = Cascade(detectors, CPU, "float32")(ct, make_pet())
    assert not any(fallback.startswith(("no head", "nothing coarse")) for fallback in result.fallbacks)
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
    mask = Cascade(detectors, CPU, "float32")(ct, make_pet()).mask
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == ct.GetSize()
    assert mask.GetSpacing() == ct.GetSpacing()
    assert mask.GetOrigin() == ct.GetOrigin()
    assert mask.GetDirection() == ct.GetDirection()
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) == {0, 1, 2}


def test_untrained_members_of_all_kinds_run_through(tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path,
        card("head", "plainconv"),
        card("coarse", "plainconv"),
        card("fine", "resenc", input={"cte": True}),
        card("fine", "segresnet"),
    )
    ct = make_ct(*ORIENTATIONS["oblique"])
    result = Cascade(bundle, CPU, "float32", mirror=True)(ct, make_pet())
    assert list(result.seconds) == ["resample", "head", "coarse", "fine", "back"]
    assert list(result.grids) == ["head", "coarse", "fine"]
    assert result.mask.GetSize() == ct.GetSize()


def test_nothing_found_anywhere_ends_with_an_empty_mask_and_named_fallbacks(
    pointwise: None, tmp_path: Path
) -> None:
    bundle = make_bundle(
        tmp_path,
        card("head", "pointwise", never(1, 1)),
        card("coarse", "pointwise", never()),
        card("fine", "pointwise", never()),
    )
    ct = make_ct(*ORIENTATIONS["flipped"])
    result = Cascade(bundle, CPU, "float32")(ct, make_pet())
    assert not sitk.GetArrayFromImage(result.mask).any()
    assert result.mask.GetDirection() == ct.GetDirection()
    head, coarse = result.fallbacks
    assert "no head" in head
    assert "brightest PET" in coarse


def test_the_fallback_still_finds_the_lesion(pointwise: None, tmp_path: Path) -> None:
    """Without head and coarse finding, the fine ROI lies on the brightest uptake inside the coarse ROI."""
    bundle = make_bundle(
        tmp_path,
        card("head", "pointwise", never(1, 1)),
        card("coarse", "pointwise", never(), grid={"spacing": [12.0] * 3}),
        card("fine", "pointwise", LESION),
    )
    ct = make_ct(*ORIENTATIONS["identity"])
    mask = sitk.GetArrayFromImage(Cascade(bundle, CPU, "float32")(ct, make_pet()).mask)
    assert (mask == 1).any() or (mask == 2).any()


@pytest.mark.parametrize(("until", "labels"), [("head", {0, 1}), ("coarse", {0, 1, 2})])
def test_an_earlier_stage_can_be_the_last(detectors: Bundle, until: str, labels: set[int]) -> None:
    ct = make_ct(*ORIENTATIONS["identity"])
    result = Cascade(detectors, CPU, "float32", until=until)(ct, make_pet())
    assert list(result.grids)[-1] == list(result.seconds)[-2] == until
    mask = sitk.GetArrayFromImage(result.mask)
    assert set(np.unique(mask)) == labels
    if until == "head":  # what is denser than -100 HU, as deep as the head stage's grid reaches
        body = sitk.GetArrayFromImage(ct) > -100
        deep = points(ct)[..., 2] > points(ct)[..., 2].max() - 16 * 12 + 12
        assert (mask[deep] == body[deep]).mean() > 0.95


def test_components_below_the_volume_floor_are_dropped(pointwise: None, tmp_path: Path) -> None:
    """A sphere of 11.9 mm radius has 7 ml."""
    floors = {}
    for ml in (6.0, 8.0):
        decision = {"rule": "half", "min_component_ml": ml, "mirror": False}
        only = card(
            "fine", "pointwise", LESION, grid={"placement": "scan", "size": [60] * 3}, decision=decision
        )
        bundle = make_bundle(tmp_path / str(ml), only)
        mask = Cascade(bundle, CPU, "float32")(make_ct(*ORIENTATIONS["identity"]), make_pet()).mask
        floors[ml] = set(np.unique(sitk.GetArrayFromImage(mask)))
    assert floors == {6.0: {0, 1, 2}, 8.0: {0}}


def small_cubes(**rules: object) -> list[dict]:
    """A detector whose fine cube of 48 mm cannot hold tumour and node, 62 mm apart."""
    return [
        card("head", "pointwise", HEAD),
        card("coarse", "pointwise", LESION, grid={"top": 1.0, "size": [36] * 3}),
        card("fine", "pointwise", LESION, grid={"size": [16] * 3}, decision=DECISION | rules),
    ]


def found_ml(mask: sitk.Image) -> list[float]:
    """Volume of each label 1, 2 in ml."""
    voxels = np.bincount(sitk.GetArrayFromImage(mask).ravel(), minlength=3)
    return list(voxels[1:] * np.prod(mask.GetSpacing()) / 1000)


@pytest.mark.parametrize("way_back", ["probabilities", "labels"])
def test_lesions_outside_one_cube_are_lost_and_said_and_all_cubes_find_them(
    pointwise: None, tmp_path: Path, way_back: str
) -> None:
    """Each lesion is a sphere of 7 ml; the cube between them cuts both."""
    ct = make_ct(*ORIENTATIONS["fine slices"])
    whole = [4 / 3 * np.pi * RADIUS**3 / 1000] * 2
    results = {}
    for cover in ("one", "all"):
        bundle = make_bundle(tmp_path / cover, *small_cubes(cover=cover, way_back=way_back))
        results[cover] = Cascade(bundle, CPU, "float32")(ct, make_pet())
    lost, covered = results["one"], results["all"]
    assert len(lost.grids["fine"]) == 1
    assert sum(found_ml(lost.mask)) < 0.5 * sum(whole)
    assert lost.outside_ml is not None
    # What is outside by the coarse stage is about what the fine stage misses.
    assert lost.outside_ml == pytest.approx(sum(whole) - sum(found_ml(lost.mask)), abs=2.0)
    assert len(covered.grids["fine"]) == 2
    assert covered.outside_ml == 0
    assert found_ml(covered.mask) == pytest.approx(whole, rel=0.15)
    tumour, node = sorted(covered.grids["fine"], key=lambda grid: grid.center[0])
    np.testing.assert_allclose(tumour.center, TUMOUR, atol=3)
    np.testing.assert_allclose(node.center, NODE, atol=3)


def test_cubes_that_overlap_count_nothing_twice(pointwise: None, tmp_path: Path) -> None:
    """Cubes of 72 mm around lesions 62 mm apart share a part, in which neither lesion grows or shrinks."""
    cards = small_cubes(cover="all")
    cards[-1]["stage"]["size"], cards[-1]["patch"] = [24] * 3, [24] * 3
    result = Cascade(make_bundle(tmp_path, *cards), CPU, "float32")(
        make_ct(*ORIENTATIONS["fine slices"]), make_pet()
    )
    first, second = result.grids["fine"]
    assert (np.abs(first.center - second.center) < first.extent).all()
    assert found_ml(result.mask) == pytest.approx([4 / 3 * np.pi * RADIUS**3 / 1000] * 2, rel=0.1)


@pytest.mark.parametrize("way_back", ["probabilities", "labels"])
def test_what_comes_back_is_probabilities_or_labels(pointwise: None, tmp_path: Path, way_back: str) -> None:
    """A network that tells SUV 4 apart, on cubes of 12 mm: SimpleITK brings its map or its labels back."""
    grid = {"placement": "scan", "size": [16] * 3, "spacing": [12.0] * 3}
    soft = {"weights": [[0.0, 0.0], [0.0, 20.0], [0.0, 0.0]], "biases": [0.0, -4.0, -99.0]}
    rules = DECISION | {"rule": "argmax", "way_back": way_back}
    bundle = make_bundle(tmp_path, card("fine", "pointwise", soft, grid=grid, decision=rules))
    ct, pet = make_ct(*ORIENTATIONS["oblique"]), make_pet()
    result = Cascade(bundle, CPU, "float32")(ct, pet)
    (cube,) = result.grids["fine"]
    reference = cube.image(np.zeros(cube.shape, np.float32))
    sampled = sitk.GetArrayFromImage(sitk.Resample(pet, reference, sitk.Transform(), sitk.sitkBSpline))
    tumour = 1 / (1 + np.exp(4 - np.clip(sampled, 0, 20)))
    values, how = (tumour, sitk.sitkLinear) if way_back == "probabilities" else (tumour > 0.5, None)
    back = sitk.Resample(
        cube.image(values.astype(np.float32)), ct, sitk.Transform(), how or sitk.sitkNearestNeighbor
    )
    expected = sitk.GetArrayFromImage(back) > 0.5
    assert expected.sum() > 10
    assert (expected != (sitk.GetArrayFromImage(result.mask) == 1)).sum() <= 0.01 * expected.sum()


def test_nodes_without_uptake_are_dropped(pointwise: None, tmp_path: Path) -> None:
    """The PET's spots have SUV 12 and fall to 4 at the lesions' rim: their SUVpeak lies between."""
    kept = {}
    for bound in (5.0, 12.0):
        cards = small_cubes(cover="all", node_suv_peak=bound)
        cascade = Cascade(make_bundle(tmp_path / str(bound), *cards), CPU, "float32")
        mask = cascade(make_ct(*ORIENTATIONS["oblique"]), make_pet()).mask
        kept[bound] = set(np.unique(sitk.GetArrayFromImage(mask)))
    assert kept == {5.0: {0, 1, 2}, 12.0: {0, 1}}


@pytest.mark.parametrize("before", ["head", "coarse"])
def test_without_a_fallback_nothing_found_ends_the_case(pointwise: None, tmp_path: Path, before: str) -> None:
    cards = small_cubes(fallback="fail")
    silent = {"head": never(1, 1), "coarse": never()}[before]
    cards = [card(before, "pointwise", silent) if c["stage"]["name"] == before else c for c in cards]
    cascade = Cascade(make_bundle(tmp_path, *cards), CPU, "float32")
    with pytest.raises(HnsegError, match=f"the {before} stage found nothing"):
        cascade(make_ct(*ORIENTATIONS["identity"]), make_pet())


def test_given_heads_stand_for_the_head_stage(pointwise: None, tmp_path: Path) -> None:
    """A mask places the coarse ROI; an empty one is no head; without one the bundle's head stage is asked."""
    ct = make_ct(*ORIENTATIONS["identity"])
    ball = np.linalg.norm(points(ct) - (10, 0, -100), axis=-1) < 20  # 33 ml: drawn, so it is a head
    for name, head in (("drawn", ball), ("empty", ball & False)):
        sitk.WriteImage(sitk.Cast(filled(ct, head), sitk.sitkUInt8), str(tmp_path / f"{name}.nii.gz"))
    grid = {"top": 0.5, "size": [36] * 3}
    coarse = card("coarse", "pointwise", LESION, grid=grid)
    without = Cascade(make_bundle(tmp_path / "a", coarse), CPU, "float32", until="coarse", heads=tmp_path)
    drawn = without(ct, make_pet(), "drawn")
    (cube,) = drawn.grids["coarse"]
    assert not drawn.fallbacks
    np.testing.assert_allclose(cube.center, (10, 0, -100 - 36 * 6 / 2), atol=2.1)
    assert list(drawn.grids) == ["coarse"]
    assert "no head" in without(ct, make_pet(), "empty").fallbacks[0]
    with pytest.raises(HnsegError, match=r"other\.nii\.gz: no such head mask.*no head member"):
        without(ct, make_pet(), "other")
    bundle = make_bundle(tmp_path / "b", coarse, card("head", "pointwise", HEAD))
    having = Cascade(bundle, CPU, "float32", until="coarse", heads=tmp_path)
    assert list(having(ct, make_pet(), "other").grids) == ["head", "coarse"]
    assert having(ct, make_pet(), "drawn").grids["coarse"] == drawn.grids["coarse"]


def test_rules_that_cannot_be_followed_are_told_before_the_first_case(
    pointwise: None, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, *small_cubes(way_back="both"))
    with pytest.raises(HnsegError, match=r"decision\.way_back=both"):
        Cascade(bundle, CPU, "float32")


def test_a_bundle_without_the_stage_asked_for_is_told(pointwise: None, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, card("head", "pointwise", never(1, 1)))
    with pytest.raises(HnsegError, match=r"until=fine.*only head"):
        Cascade(bundle, CPU, "float32")


@pytest.mark.parametrize(("missing", "placed"), [("coarse", "fine"), ("head", "coarse")])
def test_a_bundle_without_the_stage_that_places_another_is_told(
    pointwise: None, tmp_path: Path, missing: str, placed: str
) -> None:
    """A head mask must not be taken for lesions, nor every case fall back."""
    cards = [card("head", "pointwise", never(1, 1)), card("coarse", "pointwise", never())]
    cards = [one for one in cards if one["stage"]["name"] != missing]
    bundle = make_bundle(tmp_path, *cards, card("fine", "pointwise", never()))
    with pytest.raises(HnsegError, match=f"no {missing} member.*{placed} ROI"):
        Cascade(bundle, CPU, "float32")


@pytest.mark.parametrize("slices", [2, 3])
def test_a_scan_of_few_slices_is_no_crash(pointwise: None, tmp_path: Path, slices: int) -> None:
    grids = {"antialias": True}
    bundle = make_bundle(
        tmp_path,
        card("head", "pointwise", never(1, 1), grid=grids),
        card("coarse", "pointwise", never(), grid=grids),
        card("fine", "pointwise", never(), grid=grids),
    )
    ct = make_ct((64, 56, slices), (3.5, 3.5, 30.0), np.eye(3))
    assert not sitk.GetArrayFromImage(Cascade(bundle, CPU, "float32")(ct, make_pet()).mask).any()


@pytest.mark.parametrize("offset", [98.0, 130.0])
def test_pet_that_barely_meets_the_rois_is_no_crash(pointwise: None, tmp_path: Path, offset: float) -> None:
    """The part of the PET that a ROI needs may be a slice or two."""
    grids = {"antialias": True}
    bundle = make_bundle(
        tmp_path,
        card("head", "pointwise", never(1, 1), grid=grids),
        card("coarse", "pointwise", never(), grid=grids),
        card("fine", "pointwise", never(), grid=grids),
    )
    pet = make_pet()
    x, y, z = pet.GetOrigin()
    pet.SetOrigin((x + offset, y, z))
    Cascade(bundle, CPU, "float32")(make_ct(*ORIENTATIONS["identity"]), pet)
