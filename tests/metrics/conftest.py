"""Label maps small enough to check by hand, and random ones full of lesions."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Labels = NDArray[np.uint8]


@pytest.fixture
def box() -> Callable[..., Labels]:
    """Return a maker of label maps: `box((z0, z1, y0, y1, x0, x1), …, label=2, shape=(16, 16, 16))`."""

    def make(*boxes: tuple[int, ...], label: int = 2, shape: tuple[int, int, int] = (16, 16, 16)) -> Labels:
        labels = np.zeros(shape, np.uint8)
        for z0, z1, y0, y1, x0, x1 in boxes:
            labels[z0:z1, y0:y1, x0:x1] = label
        return labels

    return make


@pytest.fixture(scope="session")
def random_pair() -> Callable[[int], tuple[Labels, Labels]]:
    """Return a maker of (prediction, truth), blobs of both classes that overlap more or less, by seed."""

    def make(seed: int) -> tuple[Labels, Labels]:
        random = np.random.default_rng(seed)
        base = random.standard_normal((12, 18, 20))
        pair = []
        for _ in range(2):
            field = gaussian_filter(base + 0.6 * random.standard_normal(base.shape), 1.2)
            gtvn = field > np.quantile(field, 0.8)
            gtvp = field < np.quantile(field, 0.05)
            pair.append(np.where(gtvn, 2, np.where(gtvp, 1, 0)).astype(np.uint8))
        return pair[0], pair[1]

    return make
