"""Entropy and disagreement of members: by scipy, and voxels worked by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricate import ct_image, pet_image
from hypothesis import given, settings
from hypothesis import strategies as st
from members import Ensemble, card, make_bundle
from scipy import special, stats
from torch import Tensor

from hnseg.card import Decision
from hnseg.imaging.grid import Grid
from hnseg.inference.ensemble import MAPS, Disagreement, entropy
from hnseg.models.checkpoint import Member


def logits(*probabilities: float) -> Tensor:
    """One voxel whose softmax is `probabilities`."""
    return torch.log(torch.tensor(probabilities)).reshape(-1, 1, 1, 1)


def gathered(members: np.ndarray, weights: np.ndarray) -> Disagreement:
    """Members' logits (n, K, z, y, x) with a weight each."""
    disagreement = Disagreement(information=True)
    for member, weight in zip(members, weights, strict=True):
        disagreement.add(torch.from_numpy(member), float(weight))
    return disagreement


@pytest.mark.parametrize("classes", [2, 3])
def test_entropy_is_scipys_and_runs_from_certain_to_no_idea(classes: int) -> None:
    drawn = np.random.default_rng(0).dirichlet([0.3] * classes, (3, 4, 5)).astype(np.float32)
    probabilities = np.moveaxis(drawn, -1, 0)
    expected = stats.entropy(probabilities, base=classes, axis=0)
    np.testing.assert_allclose(entropy(torch.from_numpy(probabilities)), expected, atol=1e-6)
    assert entropy(torch.full((classes, 1, 1, 1), 1 / classes)).item() == pytest.approx(1)
    assert entropy(torch.eye(classes)[0].reshape(-1, 1, 1, 1)).item() == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(0.1, 20))
def test_disagreement_is_the_members_mean_distance_from_their_mean(
    seed: int, count: int, scale: float
) -> None:
    """Mutual information is the weighted mean of the members' Kullback-Leibler divergences from the mean."""
    rng = np.random.default_rng(seed)
    members = rng.normal(0, scale, (count, 3, 2, 3, 4)).astype(np.float32)
    weights = rng.uniform(0.5, 3, count)
    softmax = special.softmax(members.astype(np.float64), axis=1)
    mean = np.average(softmax, axis=0, weights=weights)
    divergences = [special.rel_entr(one, mean).sum(axis=0) / math.log(3) for one in softmax]
    total, between = gathered(members, weights).uncertainty(mean.astype(np.float32))
    np.testing.assert_allclose(total, stats.entropy(mean, base=3, axis=0), atol=1e-5)
    np.testing.assert_allclose(between, np.average(divergences, axis=0, weights=weights), atol=1e-5)
    assert between.min() >= 0


def test_members_that_are_sure_of_different_classes_differ_most() -> None:
    """Three members, each sure of another class: no idea, and all of it between members."""
    sure = np.eye(3, dtype=np.float32)[..., None, None, None] * 100
    total, between = gathered(sure, np.ones(3)).uncertainty(np.full((3, 1, 1, 1), 1 / 3, np.float32))
    assert total.item() == pytest.approx(1, abs=1e-6)
    assert between.item() == pytest.approx(1, abs=1e-6)


def test_agreement_is_the_weighted_share_of_members_by_their_likeliest_class() -> None:
    """Two say GTVp, one GTVn with weight 2, one background: of 5, 2 and 2."""
    disagreement = Disagreement(information=False)
    disagreement.add(logits(0.3, 0.4, 0.3))
    disagreement.add(logits(0.1, 0.8, 0.1))
    disagreement.add(logits(0.45, 0.05, 0.5), 2)
    disagreement.add(logits(0.5, 0.25, 0.25))
    assert disagreement.agreement().ravel().tolist() == pytest.approx([2 / 5, 2 / 5])
    disagreement.add(logits(0.4, 0.4, 0.2), 5)  # no more likely than the background
    assert disagreement.agreement().ravel().tolist() == pytest.approx([2 / 10, 2 / 10])


def test_an_ensemble_tells_how_its_members_differ(tmp_path: Path) -> None:
    """Untrained networks, two of them doubled by their weight, against what each says alone."""
    bundle = make_bundle(
        tmp_path,
        card("fine", "plainconv"),
        card("fine", "plainconv", name="other"),
        card("fine", "segresnet"),
    )
    grid = Grid.centred((39, 40, 43), (24, 24, 24), (3.0, 3.0, 3.0))
    rules = Decision(weights={"plainconv": 2})

    def run(members: list[Member], disagreement: Disagreement | None = None) -> np.ndarray:
        ensemble = Ensemble(members, decision=rules)
        return ensemble(ct_image(), pet_image(), grid, disagreement=disagreement)

    disagreement = Disagreement(information=True)
    fused = run(list(bundle.members), disagreement)
    alone = np.stack([run([member]) for member in bundle.members])
    weights = [2.0 if member.card.model == "plainconv" else 1.0 for member in bundle.members]
    divergence = np.average([stats.entropy(one, fused, base=3, axis=0) for one in alone], 0, weights)
    maps = dict(zip(MAPS, disagreement.uncertainty(fused), strict=True))
    np.testing.assert_allclose(maps["entropy"], stats.entropy(fused, base=3, axis=0), atol=1e-5)
    np.testing.assert_allclose(maps["mutual_information"], divergence, atol=1e-5)
    assert maps["mutual_information"].max() > 1e-3
    share = np.average([alone.argmax(1) == label for label in (1, 2)], 1, weights)
    np.testing.assert_allclose(disagreement.agreement(), share, atol=1e-6)
