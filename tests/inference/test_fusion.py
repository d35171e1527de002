"""How members become one map: voxels worked by hand."""

import pytest
import torch
from torch import Tensor

from hnseg.card import Decision
from hnseg.inference.ensemble import Fusion

FRAMEWORKS = {"resenc": "nnunet", "plainconv": "nnunet", "segresnet": "auto3dseg"}


def logits(*probabilities: float) -> Tensor:
    """One voxel whose softmax is `probabilities`."""
    return torch.log(torch.tensor(probabilities)).reshape(-1, 1, 1, 1)


def fused(fusion: Fusion, *members: tuple[Tensor, str]) -> list[float]:
    for values, model in members:
        fusion.add(values, model, FRAMEWORKS[model])
    return fusion.probabilities().flatten().tolist()


RESENC = (logits(0.98, 0.01, 0.01), "resenc")
PLAIN = (logits(0.5, 0.25, 0.25), "plainconv")
SEGRESNET = (logits(0.3, 0.6, 0.1), "segresnet")
OTHER_SEGRESNET = (logits(0.5, 0.2, 0.3), "segresnet")


def test_flat_is_the_mean_of_all_softmax() -> None:
    result = fused(Fusion(Decision()), RESENC, PLAIN, SEGRESNET)
    assert result == pytest.approx([1.78 / 3, 0.86 / 3, 0.36 / 3])


def test_weights_go_by_model_and_are_normalised() -> None:
    """3 · (0.98, 0.01, 0.01) + (0.5, 0.25, 0.25), of 4: a model that is not named has the weight 1."""
    result = fused(Fusion(Decision(weights={"resenc": 3})), RESENC, PLAIN)
    assert result == pytest.approx([3.44 / 4, 0.28 / 4, 0.28 / 4])


def test_the_authors_means_are_of_logits_within_nnunet_and_of_softmax_elsewhere() -> None:
    """Mean logits: the geometric mean (√0.49, √0.0025, √0.0025) = (0.7, 0.05, 0.05), divided by 0.8."""
    others = ((0.3 + 0.5) / 2, (0.6 + 0.2) / 2, (0.1 + 0.3) / 2)
    expected = [(a + b) / 2 for a, b in zip((0.875, 0.0625, 0.0625), others, strict=True)]
    order = [SEGRESNET, RESENC, OTHER_SEGRESNET, PLAIN]
    assert fused(Fusion(Decision(fusion="authors")), *order) == pytest.approx(expected)
    assert fused(Fusion(Decision(fusion="authors")), *order[::-1]) == pytest.approx(expected)
    assert fused(Fusion(Decision()), *order) != pytest.approx(expected, abs=0.01)
