"""What the parity tests of random transforms share: mixes of conf/augment, draws, and when two laws agree."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
import yaml
from hydra.utils import instantiate
from scipy.stats import chi2_contingency, ks_2samp

CONF = Path(__file__).parents[2] / "conf" / "augment"
# Of two equal laws, one in a million draws would be called unequal; the tests make hundreds of comparisons,
# always with the same seeds.
SURE = 1e-6


def transform(mix: str, place: int, **changes: Any) -> tio.Transform:
    """The transform at a place of a mix in conf/augment, with some of its settings changed."""
    nodes = list(yaml.safe_load((CONF / f"{mix}.yaml").read_text())["transforms"].values())
    return instantiate(nodes[place] | changes)


def subject(image: torch.Tensor, label: torch.Tensor | None = None) -> tio.Subject:
    """An image (C, z, y, x) and a label (1, z, y, x), empty by default."""
    label = torch.zeros((1, *image.shape[1:]), dtype=torch.uint8) if label is None else label
    return tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))


def seed(number: int) -> None:
    """Seeds torch's and NumPy's generators."""
    torch.manual_seed(number)
    np.random.seed(number)


def drawn(measure: Callable[[], Sequence[float]], draws: int) -> np.ndarray:
    """What is measured of many draws, (draws, measures)."""
    seed(0)
    return np.array([measure() for _ in range(draws)], dtype=float)


def same_law(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether each column of both samples may be drawn from one distribution (Kolmogorov-Smirnov)."""
    pairs = zip(ours.T, theirs.T, strict=True)
    return all(ks_2samp(a, b).pvalue > SURE for a, b in pairs)


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


def coordinates(shape: Sequence[int]) -> torch.Tensor:
    """An image whose channels hold each voxel's z, y and x, from the middle: (3, z, y, x)."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).float()


def slopes(image: torch.Tensor) -> np.ndarray:
    """How coordinates (3, z, y, x) change from voxel to voxel in the middle: the affine's matrix."""
    z, y, x = (n // 2 for n in image.shape[1:])
    corner = image[:, z, y, x]
    steps = [image[:, z + 1, y, x], image[:, z, y + 1, x], image[:, z, y, x + 1]]
    return torch.stack([step - corner for step in steps], dim=1).double().numpy()


def euler(matrix: np.ndarray) -> np.ndarray:
    """Angles about axes 0, 1 and 2 of R_2 R_1 R_0, radians."""
    turn = matrix / np.linalg.norm(matrix, axis=0)
    return np.array(
        [np.arctan2(turn[2, 1], turn[2, 2]), np.arcsin(-turn[2, 0]), np.arctan2(turn[1, 0], turn[0, 0])]
    )
