"""Components measured once against masks post-processed and scored in earnest, over random settings."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hnseg.errors import HnsegError
from hnseg.evaluation.score import evaluate
from hnseg.evaluation.tuning import Bar, CaseComponents, read_components
from hnseg.imaging.case import Case
from hnseg.inference.postprocess import remove_faint, remove_small
from hnseg.metrics.official import aggregate

SPACING = (1.3, 1.1, 2.7)
VOXEL_ML = float(np.prod(np.float32(SPACING))) / 1000


def blobs(rng: np.random.Generator) -> np.ndarray:
    """Dozens of components of both classes, one to hundreds of voxels each."""
    noise = ndimage.gaussian_filter(rng.standard_normal((16, 32, 32)), 1.2)
    return np.select([noise > 0.14, noise < -0.12], [1, 2]).astype(np.uint8)


def write_random_case(root: Path, seed: int) -> tuple[Case, Path]:
    """Prediction and truth alike in part; a PET that does not reach all of them."""
    rng = np.random.default_rng(seed)
    truth = blobs(rng)
    predicted = np.where(rng.random((16, 1, 1)) < 0.7, truth, blobs(rng))
    suv = ndimage.gaussian_filter(rng.gamma(1, 6, (9, 7, 10)), 0.6).astype(np.float32)
    case = Case(
        f"A-{seed}", root / "ct.nii.gz", root / f"pet{seed}.nii.gz", root / "true" / f"A-{seed}.nii.gz"
    )
    files = {case.label: volume(truth, SPACING), root / "found" / case.label.name: volume(predicted, SPACING)}
    for path, image in (files | {case.pet: volume(suv, (4, 4, 4.5), (1.7, 2.1, 0.4))}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
    return case, root / "found" / case.label.name


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Case, Path]]]:
    root = tmp_path_factory.mktemp("cohort")
    return root, [write_random_case(root, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def measured(cohort: tuple[Path, list[tuple[Case, Path]]]) -> list[CaseComponents]:
    return [read_components(case, mask) for case, mask in cohort[1]]


FLOORS = st.one_of(st.sampled_from([n * VOXEL_ML for n in (1, 2, 5, 20)]), st.floats(0, 0.8))


@settings(max_examples=12)
@given(gtvp_ml=FLOORS, gtvn_ml=FLOORS, suv=st.one_of(st.just(0.0), st.floats(4, 8)))
def test_every_setting_scores_as_its_masks_do(
    cohort: tuple[Path, list[tuple[Case, Path]]],
    measured: list[CaseComponents],
    gtvp_ml: float,
    gtvn_ml: float,
    suv: float,
) -> None:
    root, pairs = cohort
    out = root / "processed"
    out.mkdir(exist_ok=True)
    for case, path in pairs:
        mask, pet = sitk.ReadImage(str(path)), sitk.ReadImage(str(case.pet))
        left = remove_small(sitk.GetArrayFromImage(mask), VOXEL_ML, [gtvp_ml, gtvn_ml])
        image = sitk.GetImageFromArray(left)
        image.CopyInformation(mask)
        sitk.WriteImage(remove_faint(image, pet, 2, suv) if suv else image, str(out / path.name))
    expected = evaluate(root / "true", out, workers=1).official
    found = aggregate(case.counts(Bar(gtvp_ml), Bar(gtvn_ml, suv)) for case in measured)
    assert {key: found[key] for key in ("tp", "fp", "fn")} == {
        key: expected[key] for key in ("tp", "fp", "fn")
    }
    for key in ("gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg"):
        assert found[key] == pytest.approx(expected[key], abs=1e-9)


def test_the_cohort_has_something_to_drop_by_each_bar(measured: list[CaseComponents]) -> None:
    """Else the comparison above would compare little."""
    for case in measured:
        assert case.gtvn.peaks is not None
        assert np.isinf(case.gtvn.peaks).any()  # beside the PET
        shown = case.gtvn.peaks[np.isfinite(case.gtvn.peaks)]
        assert shown.min() < 5 < 6 < shown.max()
        for part in (case.gtvp, case.gtvn):
            assert part.overlaps.prediction_size.min() < 5 < 20 < part.overlaps.prediction_size.max()


def test_a_pet_in_becquerels_is_told(tmp_path: Path) -> None:
    case, mask = write_random_case(tmp_path, 0)
    pet = sitk.ReadImage(str(case.pet))
    sitk.WriteImage(pet * 3000, str(case.pet))
    with pytest.raises(
        HnsegError, match=r"pet0\.nii\.gz: SUVpeak .* in a node, Bq/ml or counts; give.*pet_factor"
    ):
        read_components(case, mask)
