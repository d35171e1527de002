"""Dice + cross-entropy under deep supervision (paper section 2.4), one loss for all networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import validate_call
from torch import Tensor, nn

# Hydra takes `squared=no` for the text "no", which would count as true.
_checked = validate_call(config={"strict": True, "arbitrary_types_allowed": True})


class DiceCELoss(nn.Module):
    """The sum, in equal parts, of soft Dice and cross-entropy of softmax probabilities.

    Dice_c = 2 Σ p g / (Σ p² + Σ g²), over the voxels of each sample alone (batch Dice off), and
    1 - mean over samples and classes, as the paper's equation; nnU-Net's form has plain sums in the
    denominator and leaves the background out.

    With class weights w, Dice is the weighted mean over classes, Σ w_c Dice_c / Σ w_c, and cross-entropy of
    each sample the weighted mean over its voxels, each weighing as much as its true class (torch's `weight`;
    torch takes one mean over all samples of a batch, which would change with how a batch is parted).

    Args:
        squared: Squares in the denominator (paper) or plain sums (nnU-Net).
        background: Whether the background is one of the classes averaged.
        smooth_top: Added to the numerator.
        smooth_bottom: Added to the denominator; without it an absent and unpredicted class has no Dice.
        class_weights: One for each class in the order of the labels, background first, whether `background`
            is averaged or not; None weighs all alike.
    """

    class_weights: Tensor | None

    @_checked
    def __init__(
        self,
        *,
        squared: bool = True,
        background: bool = True,
        smooth_top: float = 1e-5,
        smooth_bottom: float = 1e-5,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.squared, self.background = squared, background
        self.smooth_top, self.smooth_bottom = smooth_top, smooth_bottom
        weights = None if class_weights is None else torch.tensor([float(w) for w in class_weights])
        # Moves with the module; checkpoints hold the network alone.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of one depth.

        Args:
            logits: (B, K, z, y, x), any precision; the loss is taken in float32.
            target: (B, z, y, x) integer labels below K.

        Returns:
            Scalar.
        """
        return torch.stack(list(self.terms(logits, target).values())).sum()

    def terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The two summands, `dice` and `ce`; arguments as `forward`."""
        logits = logits.float() if logits.dtype != torch.float64 else logits
        return {"dice": self.dice(logits.softmax(1), target), "ce": self._cross_entropy(logits, target)}

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.class_weights is None:
            return F.cross_entropy(logits, target)
        weights = self.class_weights.to(logits.dtype)
        weighted = F.cross_entropy(logits, target, weight=weights, reduction="none").flatten(1).sum(1)
        return (weighted / weights[target].flatten(1).sum(1)).mean()

    def dice(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """1 - (weighted) mean soft Dice. Arguments as `forward`, but probabilities (B, K, z, y, x)."""
        labels = torch.arange(probabilities.shape[1], device=target.device)
        # Unlike one_hot, this reads no number and takes a byte a voxel on the way.
        truth = (target[:, None] == labels.view(-1, *[1] * (target.ndim - 1))).to(probabilities.dtype)
        if not self.background:
            probabilities, truth = probabilities[:, 1:], truth[:, 1:]
        space = tuple(range(2, probabilities.ndim))
        overlap = (probabilities * truth).sum(space)
        predicted = (probabilities.square() if self.squared else probabilities).sum(space)
        dice = (2 * overlap + self.smooth_top) / (predicted + truth.sum(space) + self.smooth_bottom)
        if self.class_weights is None:
            return 1 - dice.mean()
        weights = self.class_weights.to(dice.dtype)[-dice.shape[1] :]
        return 1 - (dice.mean(0) * weights).sum() / weights.sum()


class DeepSupervision(nn.Module):
    """Weighted sum of a loss over all supervised depths.

    Args:
        loss: Loss of one depth, a sum of terms.
        weights: `nnunet`: 1, 1/2, 1/4, ..., the lowest resolution 0, normalised to sum 1; `monai`:
            1, 1/2, 1/4, ... as they are.
    """

    loss: DiceCELoss

    @_checked
    def __init__(self, loss: DiceCELoss, weights: Literal["nnunet", "monai"] = "nnunet") -> None:
        super().__init__()
        self.loss, self.rule = loss, weights

    def depth_weights(self, depths: int) -> list[float]:
        """Weight of each depth, finest first."""
        raw = [0.5**k for k in range(depths)]
        if self.rule == "monai" or depths == 1:
            return raw
        raw[-1] = 0.0
        return [w / sum(raw) for w in raw]

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Loss over depths.

        Args:
            logits: (B, K, z, y, x), or a list of them, finest first.
            target: (B, z, y, x) on the finest grid; coarser targets are taken by nearest neighbour.
        """
        return self.parts(logits, target)[0]

    def parts(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss as `forward`, and what it is made of, detached, on its device.

        Returns:
            The loss, and by name `dice_loss` and `ce_loss`, which add up to it, and `loss_depth_K`, the
            unweighted loss of each depth with a weight, 0 the finest.
        """
        depths = [logits] if isinstance(logits, Tensor) else list(logits)
        total = torch.zeros((), device=target.device)
        parts: dict[str, Tensor] = {}
        for depth, (weight, output) in enumerate(zip(self.depth_weights(len(depths)), depths, strict=True)):
            if not weight:
                continue
            terms = self.loss.terms(output, nearest(target, output.shape[2:]))
            loss = torch.stack(list(terms.values())).sum()
            total = total + weight * loss
            parts[f"loss_depth_{depth}"] = loss.detach()
            for name, term in terms.items():
                key = f"{name}_loss"
                parts[key] = parts.get(key, 0) + weight * term.detach()
        return total, parts


def nearest(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels (B, z, y, x) on a coarser grid, by nearest neighbour as nnU-Net and MONAI take it."""
    if tuple(target.shape[1:]) == tuple(shape):
        return target
    return F.interpolate(target[:, None].float(), tuple(shape), mode="nearest-exact")[:, 0].long()
