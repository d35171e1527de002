"""What the parity tests of random transforms share: draws, and when two laws agree."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2_contingency, ks_2samp

from hnseg.data.augment import Sample, Streams, Transform

# Of two equal laws, one in a million draws would be called unequal; the tests make hundreds of comparisons,
# always with the same seeds.
SURE = 1e-6


def parameters(augment: Transform, draws: int, channels: int = 2) -> list[Any]:
    """What a transform draws for many samples."""
    return [augment.draw(Streams(0, number)("test"), channels) for number in range(draws)]


def sample(image: torch.Tensor, label: torch.Tensor | None = None) -> Sample:
    """An image (C, z, y, x) and a label (z, y, x), empty by default."""
    label = torch.zeros(image.shape[1:], dtype=torch.uint8) if label is None else label
    return Sample("A", image, label, Streams(0, 0), int(label.max()))


def noise_image(shape: Sequence[int] = (2, 9, 12, 15)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def seed(number: int) -> None:
    """Seeds torch's and NumPy's generators."""
    torch.manual_seed(number)
    np.random.seed(number)


def drawn(measure: Callable[[], Sequence[float]], draws: int) -> np.ndarray:
    """What a library's seeded draws measure, (draws, measures)."""
    seed(0)
    return np.array([measure() for _ in range(draws)], dtype=float)


def same_law(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether each column of both samples may be drawn from one distribution (Kolmogorov-Smirnov)."""
    return all(ks_2samp(a, b).pvalue > SURE for a, b in zip(ours.T, theirs.T, strict=True))


def same_frequencies(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> bool:
    """Whether two samples of outcomes may be drawn from one distribution (chi-squared)."""
    counts = Counter(ours), Counter(theirs)
    outcomes = sorted(counts[0] | counts[1], key=repr)
    table = np.array([[count[outcome] for outcome in outcomes] for count in counts])
    if len(outcomes) == 1:
        return True
    rare = table.sum(axis=0) < 10  # too few for the statistic: taken together
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    return chi2_contingency(table[:, table.any(axis=0)]).pvalue > SURE
