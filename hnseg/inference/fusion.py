"""Members' logits → one probability map, each member forgotten as soon as it is added."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hnseg.inference import decision

# The authors average nnU-Net's networks before the softmax.
NNUNET = ("plainconv", "resenc")


class RunningMean:
    """A weighted mean of what is added one after the other."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.weight = 0.0

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        self.total = values * weight if self.total is None else self.total.add_(values, alpha=weight)
        self.weight += weight

    @property
    def value(self) -> Tensor:
        """Of all values added so far, at least one."""
        assert self.total is not None
        return self.total / self.weight


class Fusion:
    """Class probabilities of an ensemble, from one member's logits after the other's.

    Memory does not grow with the number of members.

    Args:
        kind: `flat` is the mean of all members' softmax (paper section 2.4). `authors` is the release's: the
            softmax of the mean logits of nnU-Net's networks, averaged with the mean softmax of the others;
            where all members are of one kind, theirs alone.
        weights: Of a model's members under `flat`, by the model's name; 1 where not named.
    """

    def __init__(self, kind: decision.Fusion = "flat", weights: Mapping[str, float] | None = None) -> None:
        self.kind = kind
        self.weights = weights if weights and kind == "flat" else {}
        self._logits, self._softmax = RunningMean(), RunningMean()

    def weight(self, model: str) -> float:
        """The weight of a model's members."""
        return float(self.weights.get(model, 1.0))

    def add(self, logits: Tensor, model: str, architecture: str) -> None:
        """Adds a member.

        Args:
            logits: (K, z, y, x) float32, background first.
            model: The name its weight goes by.
            architecture: Of its network.
        """
        if self.kind == "authors" and architecture in NNUNET:
            self._logits.add(logits)
        else:
            self._softmax.add(logits.softmax(0), self.weight(model))

    def probabilities(self) -> Tensor:
        """(K, z, y, x) of all members added so far, at least one."""
        maps = [self._logits.value.softmax(0)] if self._logits.weight else []
        maps += [self._softmax.value] if self._softmax.weight else []
        return maps[0] if len(maps) == 1 else (maps[0] + maps[1]) / 2
