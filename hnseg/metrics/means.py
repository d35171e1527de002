"""Means over cases, on one process or several."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class CaseMeans(Metric):
    """The mean of each of some figures over all cases seen since the last reset.

    The states are sums, so that processes with unlike numbers of cases reduce to what one gives on all of
    them; Lightning's own means take each process's for equally many.

    Args:
        names: Of the figures.
    """

    is_differentiable = False
    full_state_update = False

    sums: Tensor
    cases: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cases", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, figures: Mapping[str, Tensor]) -> None:
        """Adds a case's.

        Args:
            figures: Scalars by name, all of them.
        """
        self.sums += torch.stack([figures[name].detach().double() for name in self.names])
        self.cases += 1

    def compute(self) -> dict[str, Tensor]:
        """The means by name, NaN without any case."""
        return dict(zip(self.names, (self.sums / self.cases).float(), strict=True))
