"""Where a stage's grid lies on a case, also when the stage before found little or nothing."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from fabricate import ct_image, volume
from hypothesis import given, settings
from hypothesis import strategies as st

from hnseg.card import Stage
from hnseg.errors import HnsegError
from hnseg.imaging.grid import Grid
from hnseg.imaging.masks import centroid
from hnseg.imaging.placement import Fallback, place, place_grid

COARSE = Stage("coarse", (16, 16, 16), (6.0, 6.0, 6.0), "below_head")
FINE = Stage("fine", (16, 16, 16), (3.0, 3.0, 3.0), "lesions")
ROI = ((12, 12, 12), (6.0, 6.0, 6.0), (10.0, 20.0, 30.0))  # size, spacing, origin of what came before


@pytest.fixture
def ct() -> sitk.Image:
    """A 200 x 200 x 300 mm scan from the origin; a body of 100 x 80 mm, off centre, over its full height."""
    hu = np.full((60, 50, 50), -1000, np.float32)
    hu[:, 10:30, 5:30] = 40
    return volume(hu, (4, 4, 5), (2, 2, 2.5))


def hot(
    *points: tuple[float, float, float], suv: float = 10.0, shape: tuple[int, ...] = (60, 40, 40)
) -> sitk.Image:
    """PET from the origin at 5 mm with a ball of 12 mm radius around each point (x, y, z) in mm."""
    z, y, x = np.meshgrid(*(5.0 * np.arange(n) for n in shape), indexing="ij")
    values = np.full(shape, 0.5, np.float32)
    for px, py, pz in points:
        values[(x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2 < 144] = suv
    return volume(values, (5, 5, 5))


def roi(array: np.ndarray | None = None) -> sitk.Image:
    """A label image on the grid of the stage before, empty by default."""
    size, spacing, origin = ROI
    return volume(np.zeros(size[::-1], np.uint8) if array is None else array, spacing, origin)


def placed(
    stage: Stage, ct: sitk.Image, pet: sitk.Image, found, fallback: Fallback | None, **options
) -> Grid:
    """The grid, which the fallback must have placed; its sentence says so."""
    roi = place(stage, ct, pet, found, **options)
    assert roi.fallback == fallback
    assert bool(roi.note) == (fallback is not None)
    assert (roi.suv_peak is not None) == (fallback == Fallback.BRIGHTEST_PET)
    return roi.grid


def test_a_head_places_the_coarse_roi_and_nothing_is_flagged(ct: sitk.Image) -> None:
    head = np.ones((12, 12, 12), np.uint8)  # of 0.216 ml: 373 ml
    grid = placed(COARSE, ct, hot(), roi(head), None)
    # Box: x 7..79, y 17..89, z 27..99 mm; the ROI's top face stands at 27 + 0.7 * 72 and reaches 96 mm down.
    np.testing.assert_allclose(grid.center, (43, 53, 27 + 0.7 * 72 - 48))


@pytest.mark.parametrize("voxels", [None, 0, 1, 900])
def test_no_head_or_a_stray_hangs_the_roi_from_the_top(ct: sitk.Image, voxels: int | None) -> None:
    """900 voxels of 0.216 ml are 194 ml, less than any head."""
    mask = np.zeros(12**3, np.uint8)
    mask[: voxels or 0] = 1
    found = None if voxels is None else roi(mask.reshape(12, 12, 12))
    grid = placed(COARSE, ct, hot(), found, Fallback.NO_HEAD)
    assert grid.corners[:, 2].max() == pytest.approx(300)  # the scan's top
    # The body's box, found on a lattice of 8 mm: x 20..120, y 40..120 mm.
    np.testing.assert_allclose(grid.center[:2], (70, 80), atol=8)


@pytest.mark.parametrize(("voxels", "taken"), [(900, True), (1, True), (0, False)])
def test_a_drawn_head_is_a_head_however_small(ct: sitk.Image, voxels: int, taken: bool) -> None:
    mask = np.zeros(12**3, np.uint8)
    mask[:voxels] = 1
    grid = placed(
        COARSE, ct, hot(), roi(mask.reshape(12, 12, 12)), None if taken else Fallback.NO_HEAD, manual=True
    )
    if taken:  # the first voxel's lower face is at z 27 mm, whatever of the head is drawn
        layers = int(np.ceil(voxels / 144))
        assert grid.corners[:, 2].max() == pytest.approx(27 + 0.7 * 6 * layers)


@pytest.mark.parametrize(("stage", "before"), [(COARSE, "localiser"), (FINE, "coarse")])
def test_without_a_fallback_the_stage_that_found_nothing_is_named(
    ct: sitk.Image, stage: Stage, before: str
) -> None:
    with pytest.raises(HnsegError, match=f"the {before} stage found nothing.*fallback=fail"):
        place(stage, ct, hot(), roi(), fallback="fail")
    found = roi(np.ones((12, 12, 12), np.uint8))
    assert place(stage, ct, hot(), found, fallback="fail") == place(stage, ct, hot(), found)


def test_nothing_coarse_looks_at_the_brightest_pet_inside_the_coarse_roi(ct: sitk.Image) -> None:
    """The brain, hotter but outside the coarse ROI, is not taken."""
    pet = hot((46, 50, 60)) + hot((150, 150, 270), suv=50)
    grid = placed(FINE, ct, pet, roi(), Fallback.BRIGHTEST_PET)
    np.testing.assert_allclose(grid.center, (46, 50, 60), atol=6)


LOWER, UPPER = (30, 35, 45), (58, 70, 75)  # in the ROI of z 27..99 mm, the upper five times brighter


@pytest.mark.parametrize(
    ("bottom", "top", "scan_top", "expected"),
    [
        (60, 140, 300, UPPER),  # the head's middle, and so the eyes, at 100 mm
        (0, 120, 300, LOWER),  # at 60 mm: the upper spot is the brain's
        (0, 120, 120, UPPER),  # the scan cuts the head's top off: its middle says nothing
        (60, 80, 300, UPPER),  # a stray of 92 ml is no head
    ],
)
def test_the_upper_half_of_the_head_is_not_searched(
    ct: sitk.Image, bottom: int, top: int, scan_top: int, expected: tuple[float, ...]
) -> None:
    slices = scan_top // 5
    mask = np.zeros((slices, 50, 50), np.uint8)
    edge = 40 if top - bottom > 20 else 27
    mask[bottom // 5 : top // 5, 10:edge, 10:edge] = 1
    head = volume(mask, (4, 4, 5), (2, 2, 2.5))
    pet = hot(LOWER) + hot(UPPER, suv=50)
    grid = placed(FINE, ct[:, :, :slices], pet, roi(), Fallback.BRIGHTEST_PET, head=head)
    np.testing.assert_allclose(grid.center, expected, atol=3)


@pytest.mark.parametrize("suv", [0.0, 1.0, 0.1234567])
def test_flat_pet_leaves_the_middle_of_the_coarse_roi(ct: sitk.Image, suv: float) -> None:
    pet = hot() * 0 + suv
    grid = placed(FINE, ct, pet, roi(), Fallback.MIDDLE)
    np.testing.assert_allclose(grid.center, (43, 53, 63))


def test_the_papers_stages_are_what_the_configuration_holds():
    conf = Path(__file__).parents[2] / "conf" / "stage"
    stages = [
        Stage(**yaml.safe_load((conf / f"{name}.yaml").read_text()))
        for name in ("localiser", "coarse", "fine")
    ]
    extents = [np.multiply(stage.size, stage.spacing).tolist() for stage in stages]
    assert extents == [[512, 512, 384], [288] * 3, [144] * 3]
    assert [stage.classes for stage in stages] == [("head",), ("GTVp", "GTVn"), ("GTVp", "GTVn")]
    assert (stages[0].shape, stages[1].top) == ((128, 256, 256), 0.7)


@pytest.mark.parametrize("stage", [COARSE, FINE])
def test_a_rule_without_its_reference_is_refused(ct: sitk.Image, stage: Stage):
    for reference in (None, roi()):
        with pytest.raises(HnsegError, match=r"no (head mask|lesion voxel)"):
            place_grid(stage, ct, reference)


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
