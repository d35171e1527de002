"""Surface distances against MONAI and by hand."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from hnseg.metrics.surface import surface_distance


def test_shifted_plane_in_anisotropic_spacing(box):
    truth, prediction = box((0, 1, 0, 8, 0, 8)) == 2, box((2, 3, 0, 8, 0, 8)) == 2
    distance = surface_distance(prediction, truth, (1.0, 1.0, 2.5))
    assert distance == pytest.approx((5.0, 5.0))
    assert surface_distance(prediction.T, truth.T, (2.5, 1.0, 1.0)) == pytest.approx((5.0, 5.0))


def test_identical_masks_are_at_no_distance_and_empty_masks_have_none(box):
    mask = box((2, 9, 3, 8, 4, 7)) == 2
    empty = np.zeros_like(mask)
    assert surface_distance(mask, mask, (0.9, 0.9, 3.0)) == (0.0, 0.0)
    for pair in ((mask, empty), (empty, mask), (empty, empty)):
        assert surface_distance(*pair, (1, 1, 1)) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("label", [1, 2])
def test_random_masks_agree_with_monai(random_pair, seed, label):
    prediction, truth = (labels == label for labels in random_pair(seed))
    spacing = (0.98, 1.2, 3.0)
    tensors = [torch.from_numpy(mask[None, None]) for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing[::-1]}
    hd95 = compute_hausdorff_distance(*tensors, percentile=95, **options).item()
    mean = compute_average_surface_distance(*tensors, symmetric=True, **options).item()
    assert surface_distance(prediction, truth, spacing) == pytest.approx((hd95, mean), rel=1e-5)
