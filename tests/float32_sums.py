"""nnU-Net's predictor, made to sum windows in float32 where it sums in float16."""

from typing import Any

import pytest
import torch
from nnunetv2.inference import predict_from_raw_data, sliding_window_prediction


class _Torch:
    """torch, but for the type of the sums."""

    half = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def sum_in_float32(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone. What float16 moves, tests/parity/test_parity_windows.py bounds."""

    def exact(tile: tuple[int, ...], **choices: Any) -> torch.Tensor:
        return sliding_window_prediction.compute_gaussian(tile, **choices, dtype=torch.float32)

    patch.setattr(predict_from_raw_data, "torch", _Torch())
    patch.setattr(predict_from_raw_data, "compute_gaussian", exact)
