"""The official scores and means over cases as torchmetrics, on one process or several."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from hnseg.metrics.official import SCORES, count_case


class CaseMeans(Metric):
    """The means of named values over all cases seen since the last reset.

    The states are sums, so that processes with unlike numbers of cases reduce to what one process gives on
    all of them; Lightning's own means weigh each process alike.
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

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add a case: a scalar for every name."""
        self.sums += torch.stack([values[name].detach().double() for name in self.names])
        self.cases += 1

    def compute(self) -> dict[str, Tensor]:
        """The means by name, NaN without any case."""
        return dict(zip(self.names, (self.sums / self.cases).float(), strict=True))


class OfficialScores(Metric):
    """GTVp DSC, GTVn DSCagg and GTVn F1agg of all cases seen since the last reset.

    The state is a sum over patients, so that several processes reduce to what one process gives on all of
    their cases (a sampler that repeats cases to fill the last batch counts them twice: leave that off).
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    names = SCORES[:3]

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        # (scores, numerator and denominator). Single voxels beside the mm³ of hundreds of patients: float64.
        self.add_state("sums", torch.zeros((3, 2), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, spacing: Tensor | Sequence[Any]) -> None:
        """Add a case or a batch.

        Args:
            prediction: Integer labels (z, y, x) or (B, z, y, x), on any device.
            target: As prediction.
            spacing: (x, y, z) in mm, for all cases, or (B, 3), for each.
        """
        predictions = prediction.detach().reshape(-1, *prediction.shape[-3:]).cpu().numpy()
        targets = target.detach().reshape(-1, *target.shape[-3:]).cpu().numpy()
        spacings = torch.as_tensor(spacing, dtype=torch.float64).expand(len(predictions), 3).tolist()
        for case in zip(predictions, targets, spacings, strict=True):
            self.sums += torch.tensor(count_case(*case).terms()[:3], dtype=torch.float64).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """Return scalars `gtvp_dsc` (NaN without any patient), `gtvn_dsc_agg` and `gtvn_f1_agg`."""
        scores = self.sums[:, 0] / self.sums[:, 1]
        # As in `ratio_of_sums`: nothing to find and nothing found.
        scores[1:] = torch.where(self.sums[1:, 1] > 0, scores[1:], 1.0)
        return dict(zip(self.names, scores, strict=True))
