"""The official scores and means over cases as torchmetrics, on one process or several."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from hnseg.metrics.lesions import Connectivity, Detections, Matching
from hnseg.metrics.official import EmptyPolicy, count_case, f1_agg, ratio_or_one


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


class OfficialScores(Metric):
    """GTVp DSC, GTVn DSCagg and GTVn F1agg of all cases seen since the last reset.

    Every state is a sum over patients, so that several processes reduce to what one process gives on all of
    their cases (a sampler that repeats cases to fill the last batch counts them twice: leave that off).

    Args:
        empty: What a patient without GTVp in truth and prediction scores: `one`, `zero` or `skip`.
        connectivity: Of GTVn lesions: 6, 18 or 26.
        matching: Of GTVn lesions: `greedy`, `hungarian` or `group`.
        threshold: IoU above which a GTVn lesion counts as found.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    gtvp_dice: Tensor
    gtvp_patients: Tensor
    gtvn_intersection: Tensor
    gtvn_volume: Tensor
    lesions: Tensor

    def __init__(
        self,
        *,
        empty: EmptyPolicy = "one",
        connectivity: Connectivity = 26,
        matching: Matching = "greedy",
        threshold: float = 0.30,
    ) -> None:
        super().__init__()
        self.empty: EmptyPolicy = empty
        self.connectivity: Connectivity = connectivity
        self.matching: Matching = matching
        self.threshold = threshold
        # mm³ over hundreds of patients and single voxels: float32 would lose the latter.
        for name in ("gtvp_dice", "gtvn_intersection", "gtvn_volume"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("gtvp_patients", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("lesions", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        prediction: Tensor,
        target: Tensor,
        spacing: Tensor | Sequence[float] | Sequence[Sequence[float]],
    ) -> None:
        """Add one case or a batch.

        Args:
            prediction: Integer labels (z, y, x) or (B, z, y, x), on any device.
            target: As prediction.
            spacing: (x, y, z) in mm, for all cases, or (B, 3), for each.

        Raises:
            ValueError: The shapes do not agree.
        """
        if prediction.shape != target.shape or prediction.ndim not in (3, 4):
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be alike, "
                "(z, y, x) or (B, z, y, x)"
            )
        predictions = prediction.detach().reshape(-1, *prediction.shape[-3:]).cpu().numpy()
        targets = target.detach().reshape(-1, *target.shape[-3:]).cpu().numpy()
        spacings = torch.as_tensor(spacing, dtype=torch.float64).expand(len(predictions), 3).tolist()
        for case in zip(predictions, targets, spacings, strict=True):
            counts = count_case(
                *case, connectivity=self.connectivity, matching=self.matching, threshold=self.threshold
            )
            dice = counts.gtvp.dice_or(self.empty)
            self.gtvp_dice += dice or 0.0
            self.gtvp_patients += dice is not None
            self.gtvn_intersection += counts.gtvn.intersection
            self.gtvn_volume += counts.gtvn.prediction + counts.gtvn.truth
            self.lesions += torch.tensor(counts.lesions, device=self.lesions.device)

    def compute(self) -> dict[str, Tensor]:
        """Return scalars `gtvp_dsc` (NaN without any patient), `gtvn_dsc_agg` and `gtvn_f1_agg`."""
        scores = {
            "gtvp_dsc": self.gtvp_dice / self.gtvp_patients,
            "gtvn_dsc_agg": ratio_or_one(2 * self.gtvn_intersection.item(), self.gtvn_volume.item()),
            "gtvn_f1_agg": f1_agg([Detections(*self.lesions.tolist())]),
        }
        return {
            name: torch.as_tensor(score, dtype=torch.float64, device=self.lesions.device)
            for name, score in scores.items()
        }
