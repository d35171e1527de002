"""conf/augment/nnunet.yaml against nnU-Net's own training transforms: same laws, same arithmetic.

Turning and scaling are in test_affine_nnunet.py.

Each comparison has a spoiled twin: one of our constants is changed, and the comparison must fail.
"""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from draws import coordinates, drawn, same_frequencies, same_law, seed, subject, transform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import hnseg.data.augment.intensity
from hnseg.data.augment.intensity import bend, coarsen, convolve, sampled_gaussian, spread, uniform

PATCH = (4, 5, 6)
AFFINE, NOISE, BLUR, BRIGHTNESS, CONTRAST, LOW_RESOLUTION, INVERTED, GAMMA, MIRROR = range(9)
CHANNELS = [NOISE, BLUR, BRIGHTNESS, CONTRAST, LOW_RESOLUTION, INVERTED, GAMMA]
DEGREES = np.deg2rad(30)


def theirs(place: int):
    """nnU-Net's transform at the place where our mix has its own."""
    mix = nnUNetTrainer.get_training_transforms(PATCH, (-DEGREES, DEGREES), None, (0, 1, 2), False)
    assert len(mix.transforms) == 10  # the last one turns what was outside the volume into background
    return mix.transforms[place]


def noise_image(shape=(2, 6, 6, 6)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def ours_on(image: torch.Tensor, augment) -> torch.Tensor:
    return augment(subject(image))["image"].data


def theirs_on(image: torch.Tensor, augment) -> torch.Tensor:
    return augment(image=image.clone())["image"]


# --- how often -----------------------------------------------------------------------------------


def changed_channels(run, augment, draws: int = 2500) -> list[tuple[bool, ...]]:
    image = noise_image((2, 4, 4, 4))
    seed(1)
    return [tuple((run(image, augment) != image).flatten(1).any(1).tolist()) for _ in range(draws)]


@pytest.mark.parametrize("place", CHANNELS)
def test_each_transform_acts_as_often_and_on_the_same_channels(place):
    reference = changed_channels(theirs_on, theirs(place))
    ours = transform("nnunet", place)
    assert same_frequencies(changed_channels(ours_on, ours), reference)
    spoiled = transform("nnunet", place, p=1.5 * ours.probability)
    assert not same_frequencies(changed_channels(ours_on, spoiled), reference)


def mirrored(run, augment, draws: int = 800) -> list[tuple[bool, ...]]:
    image = coordinates((2, 2, 2))
    seed(2)
    return [tuple((run(image, augment)[:, 0, 0, 0] > 0).tolist()) for _ in range(draws)]


def test_every_axis_is_mirrored_half_the_time_apart_from_the_others():
    reference = mirrored(theirs_on, theirs(MIRROR))
    assert same_frequencies(mirrored(ours_on, transform("nnunet", MIRROR)), reference)
    assert not same_frequencies(mirrored(ours_on, transform("nnunet", MIRROR, axes=[1, 2])), reference)


# --- how much ------------------------------------------------------------------------------------


def noise_deviation(image, out):
    return (out - image).std(dim=(1, 2, 3)).tolist()


def factor(image, out):
    # At a voxel near each channel's mean, where the contrast is never clipped.
    centred, spread_out = (x - image.mean(dim=(1, 2, 3), keepdim=True) for x in (image, out))
    place = (centred - 0.1 * image.std()).abs().flatten(1).argmin(1, keepdim=True)
    return (spread_out.flatten(1).gather(1, place) / centred.flatten(1).gather(1, place)).flatten().tolist()


def ratio(image, out):
    return (out[:, 1, 1, 1] / image[:, 1, 1, 1]).tolist()


def roughness(image, out):
    return out.std(dim=(1, 2, 3)).tolist()


def blur_sigmas(image, out):
    """Of an impulse in the middle: the Gaussian's deviation along each axis, from two of its values."""
    z, y, x = (n // 2 for n in out.shape[1:])
    sides = torch.stack([out[:, z + 1, y, x], out[:, z, y + 1, x], out[:, z, y, x + 1]], 1)
    share = (sides / out[:, z, y, x, None]).double()
    return torch.where(share > 0, (-0.5 / share.log()) ** 0.5, 0).flatten().tolist()


def exponent(image, out):
    """Of a ramp: the power that its middle was taken to, within the range."""
    ramp, bent = image[:, 0, 0], out[:, 0, 0]
    start, middle, end = bent[:, 0], bent[:, 2], bent[:, -1]
    share = (ramp[:, 2] - ramp[:, 0]) / (ramp[:, -1] - ramp[:, 0])
    return (((middle - start) / (end - start)).log() / share.log()).tolist()


def inverted_exponent(image, out):
    return exponent(-image.flip(3), -out.flip(3))


def impulse() -> torch.Tensor:
    image = torch.zeros((2, 9, 9, 9))
    image[:, 4, 4, 4] = 1
    return image


def ramp() -> torch.Tensor:
    return torch.linspace(-1, 2, 8).expand(2, 2, 2, 8).clone()


MEASURES = {
    NOISE: (lambda: torch.zeros((2, 8, 8, 8)), noise_deviation, {"std": [0.0, 0.3]}),
    BLUR: (impulse, blur_sigmas, {"sigma": [0.5, 1.2]}),
    BRIGHTNESS: (noise_image, ratio, {"scale": 0.35}),
    CONTRAST: (noise_image, factor, {"factor": [0.6, 1.25]}),
    LOW_RESOLUTION: (lambda: noise_image((2, 12, 12, 12)), roughness, {"scale": [0.75, 1.0]}),
    INVERTED: (ramp, inverted_exponent, {"inverted": False}),
    GAMMA: (ramp, exponent, {"gamma": [0.7, 1.3]}),
}


@pytest.mark.parametrize("place", CHANNELS)
def test_amounts_follow_the_same_law(place):
    make, measure, spoil = MEASURES[place]
    image = make()
    inner = theirs(place).transform
    reference = drawn(lambda: measure(image, theirs_on(image, inner)), 600)
    ours, spoiled = transform("nnunet", place, p=1), transform("nnunet", place, p=1, **spoil)
    assert same_law(drawn(lambda: measure(image, ours_on(image, ours)), 600), reference)
    assert not same_law(drawn(lambda: measure(image, ours_on(image, spoiled)), 600), reference)


@pytest.mark.parametrize("place", CHANNELS)
def test_channels_share_what_nnunet_shares(place):
    make, measure, _ = MEASURES[place]
    image = make()
    inner, ours = theirs(place).transform, transform("nnunet", place, p=1)
    shared = []
    for run, augment in ((theirs_on, inner), (ours_on, ours)):
        values = drawn(lambda run=run, augment=augment: measure(image, run(image, augment)), 300)
        first, second = np.array_split(values, 2, axis=1)
        shared.append(np.corrcoef(first[:, 0], second[:, 0])[0, 1] > 0.9)
    assert shared == [place == NOISE] * 2


def test_gamma_is_below_one_as_often_as_above(monkeypatch):
    image, inner = ramp(), theirs(GAMMA).transform
    reference = drawn(lambda: exponent(image, theirs_on(image, inner)), 2000)
    monkeypatch.setattr(hnseg.data.augment.intensity, "about_one", uniform)  # drawn evenly: a spoiled twin
    spoiled = transform("nnunet", GAMMA, p=1)
    assert not same_law(drawn(lambda: exponent(image, ours_on(image, spoiled)), 2000), reference)


# --- the same arithmetic with the same amounts -----------------------------------------------------


def apply(reference, image: torch.Tensor, **params) -> torch.Tensor:
    """nnU-Net's transform on channel 0 alone, with these amounts."""
    return reference._apply_to_image(image[:1].clone(), **params)[0]


FIRST = torch.tensor([0])


@pytest.mark.parametrize("amount", [0.75, 1.2])
def test_contrast_is_nnunets(amount):
    image = noise_image()
    reference = ContrastTransform((1, 1), True, False)
    expected = apply(reference, image, apply_to_channel=FIRST, multipliers=torch.tensor([amount]))
    torch.testing.assert_close(spread(image[0], amount), expected)
    assert not torch.allclose(spread(image[0], amount + 0.02), expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("amount", [0.7, 1.5])
def test_gamma_is_nnunets(sign, amount):
    image = noise_image()
    expected = apply(
        GammaTransform((1, 1), 0, False, 1, 1),
        image,
        apply_to_channel=FIRST,
        retain_stats=torch.tensor([True]),
        invert_image=torch.tensor([sign < 0]),
        gamma=torch.tensor([amount]),
    )
    torch.testing.assert_close(sign * bend(sign * image[0], amount), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(-sign * bend(-sign * image[0], amount), expected, atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 0.63, 1.0])
def test_low_resolution_is_nnunets(scale):
    image = noise_image((2, 9, 12, 15))
    reference = SimulateLowResolutionTransform((1, 1), False, True, None)
    expected = apply(reference, image, apply_to_channel=FIRST, scales=torch.tensor([[scale] * 3]))
    torch.testing.assert_close(coarsen(image[0], scale), expected)
    assert not torch.allclose(coarsen(image[0], scale - 0.1), expected)


@pytest.mark.parametrize("sigmas", [(0.5, 0.7, 1.0), (0.58, 0.59, 0.91)])
def test_blur_is_nnunets(sigmas):
    image = noise_image((2, 9, 12, 15))
    mask = torch.tensor([True])
    expected = apply(GaussianBlurTransform(1), image, apply_to_channel=mask, sigmas=[list(sigmas)])
    kernels = [sampled_gaussian(sigma) for sigma in sigmas]
    torch.testing.assert_close(convolve(image[:1], kernels, "reflect")[0], expected)
    assert not torch.allclose(convolve(image[:1], kernels, "constant")[0], expected)
