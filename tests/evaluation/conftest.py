"""Cohorts of small masks on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

IDENTITY = np.eye(3)


@pytest.fixture
def write() -> Callable[..., Path]:
    """Return a writer: `write(path, array (z, y, x), spacing=(x, y, z), direction=…)`."""

    def write(
        path: Path,
        array: np.ndarray,
        spacing=(1.0, 1.0, 3.0),
        origin=(-8.0, -8.0, -20.0),
        direction=IDENTITY,
    ) -> Path:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(np.ravel(direction).tolist())
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
        return path

    return write


@pytest.fixture
def masks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Three patients, (prediction, truth): spacing 1 × 1 × 3 mm makes a voxel 3 mm³."""
    empty = np.zeros((12, 16, 16), np.uint8)

    def with_boxes(*boxes: tuple[int, slice, slice, slice]) -> np.ndarray:
        labels = empty.copy()
        for label, *box in boxes:
            labels[tuple(box)] = label
        return labels

    low, high = slice(0, 4), slice(8, 12)
    truth = with_boxes((1, low, low, low), (2, high, high, high))
    shifted = with_boxes((1, low, low, slice(1, 5)), (2, high, high, high))
    return {
        "CHUM-001": (truth, truth),
        "CHUM-002": (shifted, truth),  # GTVp Dice 0.75, HD95 and shift 1 mm
        "MDA-001": (with_boxes((2, high, high, high)), empty),  # no GTVp on either side, one false GTVn
    }
