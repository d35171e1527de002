"""Cached volumes: the right voxels, made once, made again when something changed, whole or not at all."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, label_image, pet_image, volume, write_case
from scipy.spatial.transform import Rotation

from hnseg.card import Stage
from hnseg.data.cache import StageVolume
from hnseg.data.dataset import roi_subject
from hnseg.data.prepare import prepare as prepare_cases
from hnseg.data.prepare import prepare_case
from hnseg.data.resample import AIR_HU
from hnseg.errors import HnsegError
from hnseg.imaging.case import read_cases
from hnseg.imaging.grid import Grid
from hnseg.imaging.placement import place, place_grid
from hnseg.imaging.suv import read_scan

FINE = Stage("fine", (14, 12, 10), (3.0, 3.5, 5.0), "lesions")
HEAD = Stage("localiser", (10, 10, 8), (10.0, 10.0, 12.0), "top_of_scan", ("head",))
COARSE = Stage("coarse", (18, 18, 18), (4.0, 4.0, 4.0), "below_head")


prepare = partial(prepare_cases, workers=1)  # in this process: another one takes seconds to start


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two cases of one's own, to be changed."""
    for seed, name in enumerate(("A-1", "A-2")):
        write_case(tmp_path / "data", name, seed=seed)
    return tmp_path / "data"


def write_heads(root: Path, *names: str) -> Path:
    """Box-shaped heads of x 16-64, y 16-64, z 30-90 mm on the CT's grid."""
    heads = root / "heads"
    heads.mkdir(exist_ok=True)
    mask = np.zeros((30, 40, 40), np.uint8)
    mask[10:, 8:32, 8:32] = 1
    for name in names:
        sitk.WriteImage(volume(mask, (2, 2, 3)), str(heads / f"{name}.nii.gz"))
    return heads


def times(volumes: list[StageVolume]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for v in volumes for path in v.folder.iterdir()}


def touch(path: Path) -> None:
    """Moves a file's time of change by a minute."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 60 * 10**9))


def test_an_entry_holds_what_simpleitk_samples_on_the_stage_grid(cohort, tmp_path):
    entry = prepare_case(cohort[0], FINE, tmp_path)
    grid = place_grid(FINE, ct_image(), label_image())
    reference = {}
    for name, image, how, fill in (
        ("ct", ct_image(), sitk.sitkBSpline, AIR_HU),
        ("pet", pet_image(), sitk.sitkBSpline, 0.0),
        ("label", label_image(), sitk.sitkNearestNeighbor, 0.0),
    ):
        target = grid.image(np.zeros(grid.shape, np.uint8))
        reference[name] = sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), how, fill))
    assert {name: entry.load(name).dtype for name in reference} == {
        "ct": np.int16,
        "pet": np.float32,
        "label": np.uint8,
    }
    assert entry.load("ct").shape == (10, 12, 14)
    assert np.abs(entry.load("ct") - reference["ct"]).max() <= 0.51  # whole HU
    np.testing.assert_allclose(entry.load("pet"), reference["pet"], atol=1e-4)
    np.testing.assert_array_equal(entry.load("label"), reference["label"])
    assert set(np.unique(entry.load("label"))) == {0, 1, 2}


def test_the_margin_surrounds_the_same_roi(cohort, tmp_path):
    bare = prepare_case(cohort[0], FINE, tmp_path / "bare")
    wide = prepare_case(cohort[0], FINE, tmp_path / "wide", margin_mm=9.0)
    # 9 mm are 3 voxels of 3 mm in x, 3 of 3.5 mm in y and 2 of 5 mm in z, rounded up.
    assert wide.margin == (2, 3, 3)  # z, y, x
    assert bare.margin == (0, 0, 0)
    assert wide.load("ct").shape == (14, 18, 20)
    for name in ("ct", "pet", "label"):
        inner = wide.load(name)[2:-2, 3:-3, 3:-3]
        np.testing.assert_allclose(inner, bare.load(name), atol=1 if name == "ct" else 1e-4)
    assert wide.meta["ml_outside_roi"] == bare.meta["ml_outside_roi"]


def test_nothing_is_made_again_when_nothing_changed(root, tmp_path):
    cases = read_cases(root)
    first = prepare(cases, FINE, tmp_path / "cache")
    before = times(first)
    assert [v.case_id for v in first] == ["A-1", "A-2"]
    again = prepare(cases[::-1], FINE, tmp_path / "cache")
    assert [v.case_id for v in again] == ["A-2", "A-1"]
    assert times(again) == before
    assert len(before) == 2 * 4


def test_a_changed_file_makes_its_case_again_and_no_other(root, tmp_path):
    cases = read_cases(root)
    first = prepare(cases, FINE, tmp_path / "cache")
    before, folders = times(first), {volume.folder for volume in first}
    for path in (cases[0].ct, cases[0].pet, cases[0].label):
        touch(path)
        changed, same = prepare(cases, FINE, tmp_path / "cache")
        assert changed.folder not in folders
        assert same == first[1]
        folders.add(changed.folder)
    assert times(first) == before  # a training that runs on them still reads them


def test_processes_prepare_in_parallel_and_name_all_bad_cases_at_once(tmp_path):
    root = tmp_path / "data"
    for name in ("A-1", "A-2", "A-3"):
        write_case(root, name)
    write_case(root, "B-1", ct=volume(np.zeros((30, 40, 40), np.float32), (2, 2, 3)))
    write_case(root, "B-2", label=None)
    write_case(root, "B-3", label=volume(np.zeros((30, 40, 40), np.uint8), (2, 2, 3)))
    with pytest.raises(HnsegError) as caught:
        prepare(read_cases(root), FINE, tmp_path / "cache", workers=2)
    message = str(caught.value)
    assert message.startswith("3 of 6 cases cannot be used for the fine stage: ")
    assert "B-1: CT is 0 everywhere" in message
    assert "no label image B-2.nii.gz" in message
    assert "B-3: no lesion voxel" in message
    assert "data.exclude" in message
    assert "\n" not in message
    # The others are kept.
    made = [path.parents[1].name for path in (tmp_path / "cache").rglob("meta.json")]
    assert sorted(made) == ["A-1", "A-2", "A-3"]


TILTED = Rotation.from_euler("zx", (20, -15), degrees=True).as_matrix()


@pytest.mark.parametrize("turn", [np.eye(3), TILTED, np.diag([-1.0, -1.0, 1.0])])
def test_the_volume_outside_the_roi_is_counted_voxel_by_voxel(tmp_path, turn):
    rng = np.random.default_rng(0)
    label = volume((rng.uniform(size=(30, 40, 40)) < 0.01).astype(np.uint8), (2, 2, 3))
    values = sitk.GetArrayFromImage(label)
    values[values > 0] = rng.integers(1, 3, int(values.sum()))
    images = {"ct": ct_image(), "pet": pet_image(), "label": volume(values, (2, 2, 3))}
    for image in images.values():
        image.SetOrigin((turn @ image.GetOrigin()).tolist())
        image.SetDirection(turn.ravel().tolist())
    write_case(tmp_path / "data", "A-1", **images)
    entry = prepare_case(read_cases(tmp_path / "data")[0], FINE, tmp_path / "cache")
    grid = place_grid(FINE, images["ct"], images["label"])
    low, high = grid.corners.min(0), grid.corners.max(0)
    outside = {"1": 0.0, "2": 0.0}
    for z, y, x in np.argwhere(values):
        point = images["label"].TransformIndexToPhysicalPoint([int(x), int(y), int(z)])
        if any(p < a or p > b for p, a, b in zip(point, low, high, strict=True)):
            outside[str(values[z, y, x])] += 0.012  # 2 x 2 x 3 mm³
    assert entry.meta["ml_outside_roi"] == pytest.approx(outside)
    assert min(outside.values()) > 0


def test_a_stage_that_sees_ct_alone_has_no_pet_sampled(root, tmp_path):
    options = {"heads": write_heads(root, "A-1", "A-2")}
    (both, *_) = prepare(read_cases(root), HEAD, tmp_path, **options)
    (alone, *_) = prepare(read_cases(root), HEAD, tmp_path, **options, modalities=("ct",))
    assert both.arrays == ("ct", "pet", "label")
    assert alone.arrays == ("ct", "label")
    assert set(roi_subject(alone, alone.margin).get_images_dict(intensity_only=False)) == {"ct", "label"}
    for name in alone.arrays:
        np.testing.assert_array_equal(alone.load(name), both.load(name))


def test_the_coarse_stage_is_placed_by_the_head_but_learns_lesions(root, tmp_path):
    heads = write_heads(root, "A-1", "A-2")
    entry = prepare(read_cases(root), COARSE, tmp_path, heads=heads)[0]
    grid = place_grid(COARSE, ct_image(), sitk.ReadImage(str(heads / "A-1.nii.gz")))
    assert entry.meta["grid"] == grid.to_dict()
    assert set(np.unique(entry.load("label"))) == {0, 1, 2}
    touch(heads / "A-1.nii.gz")
    assert prepare(read_cases(root), COARSE, tmp_path, heads=heads)[0].folder != entry.folder


@pytest.mark.parametrize("stage", [HEAD, COARSE])
def test_a_missing_head_mask_is_named_with_the_remedy(root, tmp_path, stage):
    heads = write_heads(root, "A-1")
    with pytest.raises(HnsegError) as caught:
        prepare(read_cases(root), stage, tmp_path, heads=heads)
    assert str(caught.value).startswith(f"1 of 2 cases cannot be used for the {stage.name} stage: A-2")
    assert str(heads / "A-2.nii.gz") in str(caught.value)
    assert "last_stage=localiser" in str(caught.value)
    with pytest.raises(HnsegError, match=r"data\.head_labels is not set"):
        prepare(read_cases(root), stage, tmp_path)


def test_coarse_predictions_place_the_fine_roi_and_truth_stays_the_label(root, tmp_path):
    coarse = tmp_path / "coarse"
    coarse.mkdir()
    found = np.zeros((30, 40, 40), np.uint8)
    found[14:16, 20:22, 24:26] = 2  # centre at voxel (24.5, 20.5, 14.5): x 49, y 41, z 43.5 mm
    sitk.WriteImage(volume(found, (2, 2, 3)), str(coarse / "A-1.nii.gz"))
    sitk.WriteImage(volume(0 * found, (2, 2, 3)), str(coarse / "A-2.nii.gz"))
    cases = read_cases(root)
    placed, empty = prepare(cases, FINE, tmp_path / "cache", coarse=coarse)
    np.testing.assert_allclose(Grid.from_dict(placed.meta["grid"]).center, [49, 41, 43.5])
    assert empty.meta["fallback"] == "brightest_pet"
    truth = prepare(cases, FINE, tmp_path / "cache")[0]
    assert truth.folder != placed.folder
    # What the predicted ROI does not hold is counted: in all, the lesions' 0.96 ml.
    held = np.bincount(placed.load("label").ravel(), minlength=3)[1:] * float(np.prod(FINE.spacing)) / 1000
    assert sum(placed.meta["ml_outside_roi"].values()) + held.sum() == pytest.approx(0.96, abs=0.3)
    # Where infer.py says which ROI it searched, the brightest PET is sought there alone: not at the hot
    # spot of x 24-36 mm, but among the noise below it.
    grid = Grid((5, 5, 5), (4.0, 4.0, 4.0), (50.0, 50.0, 10.0))
    (coarse / "A-2.json").write_text(json.dumps({"roi": [grid.to_dict()]}))
    searched = prepare(cases, FINE, tmp_path / "other cache", coarse=coarse)[1]
    low, high = grid.corners.min(axis=0), grid.corners.max(axis=0)
    center = Grid.from_dict(searched.meta["grid"]).center
    assert np.all((center >= low) & (center <= high))
    assert not np.allclose(center, Grid.from_dict(empty.meta["grid"]).center, atol=4)
    (coarse / "A-2.nii.gz").unlink()
    with pytest.raises(HnsegError, match=r"no coarse prediction .*A-2.nii.gz; make them"):
        prepare(cases, FINE, tmp_path / "cache", coarse=coarse)


@pytest.mark.parametrize("record", ["", '{"roi": []}', '{"roi": [{"size": 5}]}'])
def test_a_record_that_lacks_the_searched_roi_is_refused(root, tmp_path, record):
    sitk.WriteImage(volume(np.zeros((30, 40, 40), np.uint8), (2, 2, 3)), str(tmp_path / "A-1.nii.gz"))
    (tmp_path / "A-1.json").write_text(record)
    with pytest.raises(HnsegError, match=r"A-1\.json: not the record of a coarse prediction"):
        prepare_case(read_cases(root)[0], FINE, tmp_path / "cache", masks=tmp_path)


def test_a_head_is_a_head_whichever_value_an_editor_gave_it(root, tmp_path):
    case, heads = read_cases(root)[0], write_heads(root, "A-1")
    drawn = prepare_case(case, HEAD, tmp_path, masks=heads).load("label")
    mask = sitk.ReadImage(str(heads / "A-1.nii.gz"))
    sitk.WriteImage(mask * 2, str(heads / "A-1.nii.gz"))
    np.testing.assert_array_equal(prepare_case(case, HEAD, tmp_path, masks=heads).load("label"), drawn)
    # The mask's voxels 8 to 31 of 2 mm and 10 to 29 of 3 mm; a voxel's face lies half a step before it.
    grid = place_grid(HEAD, ct_image())
    x, y, z = (
        o + step * np.arange(n) for o, step, n in zip(grid.origin, grid.spacing, grid.size, strict=True)
    )
    inside = ((z > 28.5) & (z < 88.5))[:, None, None] & ((y > 15) & (y < 63))[:, None]
    np.testing.assert_array_equal(drawn == 1, inside & ((x > 15) & (x < 63)))
    assert drawn.any()


@pytest.mark.parametrize("labelled", [True, False])
def test_a_stray_that_a_network_took_for_a_head_places_nothing(root, tmp_path, labelled):
    """As in infer.py, beside whose masks cases.csv lies; a manual mask is a head however small."""
    case, heads = read_cases(root)[0], write_heads(root, "A-1")  # of 138 ml
    if labelled:
        (heads / "cases.csv").touch()
    entry = prepare_case(case, COARSE, tmp_path, masks=heads)
    assert entry.meta["fallback"] == ("no_head" if labelled else None)
    placed = place(COARSE, *read_scan(case), sitk.ReadImage(str(heads / "A-1.nii.gz")), manual=not labelled)
    assert entry.meta["grid"] == placed.grid.to_dict()
