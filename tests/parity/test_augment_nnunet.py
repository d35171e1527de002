"""conf/augment/nnunet.yaml against nnU-Net's own transforms: settings, laws of the parameters, outputs.

Turning and scaling are in test_affine_nnunet.py. Each comparison has a spoiled twin, which must fail.
"""

from typing import Any

import numpy as np
import pytest
import torch
from draws import drawn, noise_image, parameters, same_frequencies, same_law, seed
from mixes import transform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

INTENSITIES = ["noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma"]
NAMES = ["affine", *INTENSITIES, "mirror"]
IMAGE = noise_image()


def theirs(name: str) -> Any:
    """nnU-Net's transform at the place where our mix has its own."""
    degrees = np.deg2rad(30)
    mix = nnUNetTrainer.get_training_transforms((4, 5, 6), (-degrees, degrees), None, (0, 1, 2), False)
    assert len(mix.transforms) == 10  # the last one turns what was outside the volume into background
    return mix.transforms[NAMES.index(name)]


@pytest.mark.parametrize("name", INTENSITIES)
def test_each_transform_acts_as_often_and_on_as_many_channels(name):
    ours, reference = transform("nnunet", name), theirs(name)
    inner = reference.transform
    assert (ours.p, ours.p_channel) == (reference.apply_probability, inner.p_per_channel)
    assert ours.per_channel != inner.synchronize_channels
    if "gamma" in name:
        assert (ours.inverted, inner.p_retain_stats) == (bool(inner.p_invert_image), 1)
    if name == "contrast":
        assert inner.preserve_range
    acting = ~np.isnan([row[:, 0] for row in parameters(ours, 4000)])
    assert acting.any(1).mean() == pytest.approx(ours.p * (1 - (1 - ours.p_channel) ** 2), abs=0.03)
    assert acting[acting.any(1)].mean() == pytest.approx(0.5 / 0.75 if ours.p_channel == 0.5 else 1, abs=0.05)


def their_parameters(name: str) -> np.ndarray:
    """Of one channel, drawn often."""
    inner = theirs(name).transform
    inner.p_per_channel = 1.0
    keys = {"noise": "sigmas", "blur": "sigmas", "low_resolution": "scales", "inverted_gamma": "gamma"}
    key = keys.get(name, "gamma" if name == "gamma" else "multipliers")
    found = drawn(lambda: np.ravel(inner.get_parameters(image=IMAGE[:1])[key]), 600)
    assert name != "low_resolution" or (found == found[:, :1]).all()  # one scale for all axes
    return found[:, :1] if name == "low_resolution" else found


SPOILED = {
    "noise": {"std": [0.0, 0.15]},
    "blur": {"sigma": [0.5, 1.2]},
    "brightness": {"scale": 0.35},
    "contrast": {"factor": [0.6, 1.25]},
    "low_resolution": {"scale": [0.6, 1.0]},
    "inverted_gamma": {"gamma": [0.7, 1.3]},
    "gamma": {"gamma": [0.8, 1.5]},
}


@pytest.mark.parametrize("name", INTENSITIES)
def test_parameters_follow_the_same_law(name):
    reference = their_parameters(name)

    def ours(**changes: Any) -> np.ndarray:
        augment = transform("nnunet", name, p=1, p_channel=1, **changes)
        return np.stack(parameters(augment, 600, channels=1))[:, 0, : reference.shape[1]]

    assert same_law(ours(), reference)
    assert not same_law(ours(**SPOILED[name]), reference)


@pytest.mark.parametrize("mix", ["nnunet", "auto3dseg"])
def test_every_axis_is_mirrored_half_the_time_apart_from_the_others(mix):
    """Auto3DSeg's three RandFlipd of probability 0.5, one an axis, are the same law."""
    mirror = theirs("mirror")
    seed(2)
    reference = [tuple(mirror.get_parameters(image=IMAGE)["axes"]) for _ in range(800)]
    for changes in ({}, {"axes": [1, 2]}):
        ours = [tuple(axes or ()) for axes in parameters(transform(mix, "mirror", **changes), 800)]
        assert same_frequencies(ours, reference) == (not changes)


GIVEN = {
    "brightness": [1.2, 0.0],
    "contrast": [0.8],
    "low_resolution": [0.63],
    "inverted_gamma": [1.4],
    "gamma": [0.7],
    "blur": [0.58, 0.71, 0.97],
}


def applied(name: str, values: list[float]) -> torch.Tensor:
    """nnU-Net's transform on channel 0 with given parameters."""
    inner, first, amount = theirs(name).transform, torch.tensor([0]), torch.tensor(values[:1])
    given: dict[str, Any] = {
        "brightness": {"apply_to_channel": first, "multipliers": amount},
        "contrast": {"apply_to_channel": first, "multipliers": amount},
        "low_resolution": {"apply_to_channel": first, "scales": torch.tensor([values * 3])},
        "blur": {"apply_to_channel": torch.tensor([True]), "sigmas": [values]},
    }.get(name) or {
        "apply_to_channel": first,
        "gamma": amount,
        "retain_stats": torch.tensor([True]),
        "invert_image": torch.tensor([name == "inverted_gamma"]),
    }
    if name == "blur":
        inner.benchmark = False
    return inner.apply({"image": IMAGE[:1].clone()}, **given)["image"]


@pytest.mark.parametrize("name", GIVEN)
def test_outputs_for_given_parameters_are_nnunets(name):
    expected, ours = applied(name, GIVEN[name]), transform("nnunet", name)
    changed = ours.change(IMAGE[:1].clone(), np.array([GIVEN[name]]))
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)
    spoiled = ours.change(IMAGE[:1].clone(), np.array([GIVEN[name]]) * 0.9)
    assert not torch.allclose(spoiled, expected, atol=1e-3)
