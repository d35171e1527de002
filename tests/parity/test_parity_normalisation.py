"""Normalisation on top of the stage's scaling, and padding, against nnU-Net's and Auto3DSeg's own."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from jobs import job
from monai.transforms import Compose, Lambdad, ScaleIntensityRanged
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    RescaleTo01Normalization,
    ZScoreNormalization,
)
from numpy.typing import NDArray
from spoiled import must_fail

from hnseg.card import InputSpec, Normalise
from hnseg.config import read_job
from hnseg.data.intensity import input_transform, normalise

CONSTANTS = {"lower": -0.6, "upper": 0.55, "mean": 0.05, "std": 0.27}
SHAPE = (9, 10, 12)
Array = NDArray[np.float32]


def nnunet(kind: type[Any], constants: dict[str, float]) -> Callable[[Array], Array]:
    """One of nnU-Net's schemes, without mask, with constants under its own names."""
    names = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}
    scheme = kind(use_mask_for_norm=False, intensityproperties={names[k]: v for k, v in constants.items()})
    return lambda image: scheme.run(image.copy(), None)


def auto3dseg(mode: str, constants: dict[str, float]) -> Callable[[Array], Array]:
    """The same MONAI transforms as Auto3DSeg composes for a CT (`range`) or a PET (`sigmoid`)."""
    low, high = constants["lower"], constants["upper"]
    ranged = ScaleIntensityRanged(keys="image", a_min=low, a_max=high, b_min=-1, b_max=1, clip=False)
    if mode == "range":
        steps = [ranged, Lambdad(keys="image", func=lambda x: torch.sigmoid(x))]
    else:
        steps = [Lambdad(keys="image", func=lambda x: torch.sigmoid((x - x.min()) / x.std()))]
    return lambda image: np.asarray(Compose(steps)({"image": torch.from_numpy(image)[None]})["image"][0])


ORIGINALS: dict[str, Callable[[dict[str, float]], Callable[[Array], Array]]] = {
    "zscore": lambda constants: nnunet(ZScoreNormalization, constants),
    "ct": lambda constants: nnunet(CTNormalization, constants),
    "rescale": lambda constants: nnunet(RescaleTo01Normalization, constants),
    "range": lambda constants: auto3dseg("range", constants),
    "sigmoid": lambda constants: auto3dseg("sigmoid", constants),
}
# What each channel of a stage goes through (paper Tables 1 to 4, nnU-Net's and Auto3DSeg's own).
CHANNELS = {
    ("localiser", "plainconv"): ["zscore"],
    ("coarse", "plainconv"): ["zscore", "zscore"],
    ("fine", "resenc"): ["ct", "ct", "ct", "zscore"],
    ("fine", "segresnet"): ["range", "sigmoid"],
}


def picture(seed: int = 0) -> Array:
    """Values on both sides of the constants."""
    return np.random.default_rng(seed).normal(0.1, 0.6, SHAPE).astype(np.float32)


def normalised(scheme: str, image: Array, constants: dict[str, float] = CONSTANTS) -> Array:
    return normalise(torch.from_numpy(image.copy()), Normalise(scheme, **constants)).numpy()


def assert_same(ours: Array, theirs: Array) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ORIGINALS)
@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_each_scheme_is_its_original(scheme, scale):
    image, constants = scale * picture(), {name: scale * value for name, value in CONSTANTS.items()}
    assert_same(normalised(scheme, image, constants), ORIGINALS[scheme](constants)(image))


@pytest.mark.parametrize(("scheme", "name"), [("ct", name) for name in CONSTANTS] + [("range", "upper")])
def test_a_spoiled_constant_shows(scheme, name):
    theirs = ORIGINALS[scheme](CONSTANTS)(picture())
    with must_fail():
        assert_same(normalised(scheme, picture(), CONSTANTS | {name: CONSTANTS[name] + 1e-3}), theirs)


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1000.0])
def test_a_constant_image_is_what_it_is_to_the_originals(value):
    image = np.full(SHAPE, value, np.float32)
    for scheme in ("zscore", "ct", "rescale", "range"):
        ours = normalised(scheme, image)
        assert np.isfinite(ours).all()
        assert_same(ours, ORIGINALS[scheme](CONSTANTS)(image))
    # On purpose: 0 / 0 in Auto3DSeg would be NaN in every logit; it is the middle of the scale here.
    assert np.isnan(ORIGINALS["sigmoid"](CONSTANTS)(image)).all()
    assert (normalised("sigmoid", image) == 0.5).all()


@cache
def chain(stage: str, model: str, *overrides: str) -> InputSpec:
    """The configured input chain without padding, with constants."""
    cfg = job(f"stage={stage}", f"model={model}", *overrides)
    spec = read_job(cfg).input_spec
    filled = [replace(one, **{name: CONSTANTS[name] for name in one.missing}) for one in spec.normalise]
    return replace(spec, normalise=tuple(filled), pad_to=None)


def made(spec: InputSpec) -> Array:
    """What a chain makes of a random study, (C, z, y, x)."""
    rng = np.random.default_rng(0)
    hu, suv = rng.uniform(-300, 400, (1, *SHAPE)), rng.gamma(1, 3, (1, *SHAPE))
    images = {"ct": hu, "pet": suv} if "pet" in spec.modalities else {"ct": hu}
    scalars = {k: tio.ScalarImage(tensor=torch.from_numpy(v).float()) for k, v in images.items()}
    return input_transform(spec)(tio.Subject(**scalars))["image"].data.numpy()


def expected(spec: InputSpec, schemes: list[str]) -> Array:
    channels = zip(schemes, made(spec.unnormalised), strict=True)
    return np.stack([ORIGINALS[scheme](CONSTANTS)(channel) for scheme, channel in channels])


@pytest.mark.parametrize(("stage", "model"), CHANNELS)
@pytest.mark.parametrize("recipe", ["paper", "authors"])
def test_each_configured_channel_goes_through_its_own_scheme(stage, model, recipe):
    spec, schemes = chain(stage, model, f"recipe={recipe}"), CHANNELS[stage, model]
    if recipe == "authors" and model == "resenc":
        schemes = schemes[-2:]  # two channels in the released container
    assert_same(made(spec), expected(spec, schemes))
    with must_fail():  # one channel the way of another
        assert_same(made(spec), expected(spec, [*schemes[:-1], "rescale"]))


@pytest.mark.parametrize("margin", [(2, 2, 2), (16, 16, 16), (0, 4, 6), (3, 3, 3)])
def test_padding_lies_where_nnunet_puts_it_and_is_zero_after_normalising(margin):
    # The fine stage: 144³ to 160³, 8 voxels on each side.
    spec = chain("fine", "resenc")
    shape = tuple(n + m for n, m in zip(SHAPE, margin, strict=True))
    ours, inner = made(replace(spec, pad_to=shape)), expected(spec, CHANNELS["fine", "resenc"])
    theirs = pad_nd_image(inner, shape, "constant", {"constant_values": 0})
    if margin == (3, 3, 3):
        # On purpose TorchIO's way: an odd voxel stands in front, and nnU-Net puts it behind. No grid of the
        # paper is padded by an odd number.
        theirs = np.roll(theirs, (1, 1, 1), axis=(1, 2, 3))
    assert_same(ours, theirs)
    with must_fail():  # a voxel further
        assert_same(np.roll(ours, 1, axis=-2), theirs)
