"""Sliding windows against nnUNetPredictor and MONAI's sliding_window_inference, in the same process."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from float32_sums import sum_in_float32
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from nnunetv2.inference import sliding_window_prediction
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from spoiled import must_fail
from torch import Tensor, nn

from hnseg.inference.predictor import Predictor, gaussian_importance_map, window_starts

WINDOWS = [(8, 12, 16), (7, 9, 10), (48, 24, 32)]
PATCH = (8, 12, 10)
# Larger along every axis, along one, the patch itself, smaller by an odd number, and both at once.
SHAPES = [(19, 27, 23), (8, 12, 31), (8, 12, 10), (5, 7, 9), (5, 30, 10)]


@pytest.fixture
def network() -> nn.Module:
    """Sees neighbours and sides, and is sure of itself: a flat softmax would agree with anything."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv3d(2, 6, 5, padding=2), nn.LeakyReLU(), nn.Conv3d(6, 3, 5, padding=2))
    layers[2].weight.data *= 200
    return layers.eval()


def volume(*shape: int) -> Tensor:
    return torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))


MONAI = {"tiling": "monai", "overlap": 0.625}


def reference(network: nn.Module, image: Tensor, options: dict[str, Any]) -> Tensor:
    """Logits by the library whose windows the options of `Predictor` name."""
    if options is MONAI:
        with torch.no_grad():
            return sliding_window_inference(image, PATCH, 1, network, 0.625, "gaussian")
    mirror = options.get("mirror", ())
    predictor = nnUNetPredictor(use_mirroring=bool(mirror), device=torch.device("cpu"), allow_tqdm=False)
    predictor.network, predictor.allowed_mirroring_axes = network, mirror
    # It reads no more of its plans than these.
    predictor.configuration_manager = SimpleNamespace(patch_size=list(PATCH))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=3)
    return predictor.predict_sliding_window_return_logits(image[0])[None]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.softmax(1).amax(1).mean() > 0.9
    torch.testing.assert_close(ours.softmax(1), theirs.softmax(1), rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3)


@settings(max_examples=300)
@given(st.integers(1, 200), st.integers(1, 300), st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.7]))
def test_windows_start_where_the_libraries_do(window: int, beyond: int, overlap: float) -> None:
    side = window + beyond - 1
    (expected,) = sliding_window_prediction.compute_steps_for_sliding_window((side,), (window,), 1 - overlap)
    assert window_starts(side, window, "nnunet", overlap) == sorted(set(expected))
    interval = window if side == window else max(int(window * (1 - overlap)), 1)
    expected = [box[0].start for box in dense_patch_slices((side,), (window,), (interval,))]
    assert window_starts(side, window, "monai", overlap) == expected


def importance(window: tuple[int, ...], tiling: str) -> Tensor:
    """The library's own weights."""
    if tiling == "monai":
        return compute_importance_map(window, "gaussian")
    device = torch.device("cpu")
    return sliding_window_prediction.compute_gaussian(window, dtype=torch.float32, device=device)


@pytest.mark.parametrize("tiling", ["nnunet", "monai"])
@pytest.mark.parametrize("window", WINDOWS)
def test_weights_are_the_library_s_voxel_for_voxel(window, tiling):
    expected = importance(window, tiling)
    torch.testing.assert_close(gaussian_importance_map(window, tiling), expected, rtol=1e-5, atol=0)
    with must_fail():
        other = {"nnunet": "monai", "monai": "nnunet"}[tiling]
        torch.testing.assert_close(gaussian_importance_map(window, other), expected, rtol=1e-5, atol=0)


def test_no_weight_is_zero_however_long_the_window() -> None:
    assert (gaussian_importance_map((1, 1, 400), "nnunet") > 0).all()
    assert (gaussian_importance_map((1, 1, 400), "monai") > 0).all()


MIRROR = {"mirror": (0, 1, 2)}


@pytest.mark.parametrize("options", [{}, MIRROR, {"mirror": (1, 2)}, MONAI])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_library_s(network, shape, options, monkeypatch):
    sum_in_float32(monkeypatch)
    image = volume(*shape)
    assert_same(Predictor(PATCH, **options)(network, image), reference(network, image, options))


def test_nnunet_s_own_float16_sums_move_its_softmax_by_little(network):
    """On purpose: hnseg sums in float32, on every device."""
    image = volume(*SHAPES[0])
    theirs = reference(network, image, MIRROR)
    assert theirs.dtype == torch.half
    difference = Predictor(PATCH, **MIRROR)(network, image).softmax(1) - theirs.float().softmax(1)
    assert 1e-5 < difference.abs().max() < 0.1
    assert difference.abs().mean() < 1e-3


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (MIRROR, {"overlap": 0.25}),
        (MIRROR, {"tiling": "monai"}),
        (MIRROR, {"mirror": (0, 1)}),
        (MONAI, {"overlap": 0.5}),
        (MONAI, {"tiling": "nnunet"}),
    ],
)
def test_a_changed_option_gives_other_logits(network, options, change, monkeypatch):
    sum_in_float32(monkeypatch)
    image = volume(*SHAPES[0])
    with must_fail():
        assert_same(Predictor(PATCH, **options | change)(network, image), reference(network, image, options))
