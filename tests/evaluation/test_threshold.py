from itertools import product

import numpy as np
import pytest
from fabricate import volume, write_case
from scipy import ndimage

from hnseg.data.phantom import make_cohort
from hnseg.evaluation.threshold import oracle_threshold, split_components
from hnseg.imaging.case import read_cases
from hnseg.metrics.official import GTVN, GTVP


def dice(a, b):
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


@pytest.fixture
def save(tmp_path):
    """Writes a case of 2 mm voxels: `save(name, suv, label)`, arrays (z, y, x)."""

    def save(name, suv, label):
        ct, pet, truth = (volume(array, (2.0, 2.0, 2.0)) for array in (suv * 0, suv, label))
        write_case(tmp_path, name, ct=ct, pet=pet, label=truth)
        return tmp_path

    return save


@pytest.fixture
def scene():
    """A primary of SUV 6 that touches a gland of SUV 4, and a node of SUV 9 apart from them."""
    suv, label = np.ones((30, 30, 30), np.float32), np.zeros((30, 30, 30), np.uint8)
    suv[10:14, 10:14, 10:14], label[10:14, 10:14, 10:14] = 6, GTVP
    suv[10:14, 10:14, 14:18] = 4
    suv[20:22, 20:22, 20:24], label[20:22, 20:22, 20:24] = 9, GTVN
    return suv, label


def test_the_best_threshold_parts_a_tumour_from_a_cooler_gland(save, scene):
    result = oracle_threshold(read_cases(save("A-1", *scene)), suvs=(2.0, 3.0, 5.0, 8.0))
    assert result.suv == 5.0
    assert result.gtvp_dsc == result.gtvn_dsc_agg == 1.0


def test_below_the_glands_uptake_both_are_one_component(save, scene):
    """64 true voxels of 128 found: 2 · 64 / (64 + 128)."""
    result = oracle_threshold(read_cases(save("A-1", *scene)), suvs=(3.0,))
    assert result.gtvp_dsc == pytest.approx(2 / 3)
    assert result.gtvn_dsc_agg == 1.0


def test_one_threshold_serves_all_cases(save, scene):
    """B-1 is A-1 at half the uptake: only SUV 2.5 parts it, and that merges A-1's tumour with its gland."""
    suv, label = scene
    save("A-1", suv, label)
    root = save("B-1", suv / 2, label)
    result = oracle_threshold(read_cases(root), suvs=(2.5, 5.0))
    assert result.gtvp_dsc == pytest.approx((1 + 2 / 3) / 2)
    assert result.suv == 2.5


def test_uptake_outside_the_roi_does_not_count(save):
    """A hot spot 80 mm from the only lesion: beyond the 72 mm that the ROI reaches."""
    suv, label = np.ones((20, 20, 60), np.float32), np.zeros((20, 20, 60), np.uint8)
    suv[8:12, 8:12, 5:9], label[8:12, 8:12, 5:9] = 6, GTVP
    suv[8:12, 8:12, 46:50] = 6
    assert oracle_threshold(read_cases(save("A-1", suv, label)), suvs=(4.0,)).gtvn_dsc_agg == 1.0


def test_a_case_without_gtvp_scores_one(save, scene):
    suv, label = scene
    label[label == GTVP] = 0
    assert oracle_threshold(read_cases(save("A-1", suv, label)), suvs=(3.0,)).gtvp_dsc == 1.0


def test_the_chosen_classes_are_the_best_of_all():
    """Against every assignment of the components of random images."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        suv, truth = (ndimage.gaussian_filter(rng.standard_normal((14, 14, 14)), 1.6) for _ in range(2))
        truth = np.select([truth > 0.08, truth < -0.1], [GTVP, GTVN])
        components, count = ndimage.label(suv >= 0.12, np.ones((3, 3, 3)))
        assert count < 12
        every = product([False, True], repeat=count)
        best = max(dice(np.array([False, *chosen])[components], truth == GTVP) for chosen in every)
        labels = split_components(suv, truth, 0.12)
        assert dice(labels == GTVP, truth == GTVP) == pytest.approx(best)
        np.testing.assert_array_equal(labels > 0, components > 0)


@pytest.mark.slow
def test_the_phantom_is_not_solved_by_a_threshold(tmp_path):
    make_cohort(tmp_path, 16, seed=1, workers=1)
    result = oracle_threshold(read_cases(tmp_path))
    assert 0.1 < result.gtvp_dsc < 0.45
    assert result.gtvn_dsc_agg < 0.45
    assert f"{result.gtvp_dsc:.4f}" in str(result)
