"""conf/augment/auto3dseg.yaml against MONAI's transforms, set as Auto3DSeg's SegResNet template sets them.

The template's own code is not on PyPI; its figures stand here (get_augment_transforms, default mode).
Each comparison has a spoiled twin: one of our constants is changed, and the comparison must fail.
"""

import numpy as np
import pytest
import torch
from draws import coordinates, drawn, euler, same_frequencies, same_law, seed, slopes, subject, transform
from monai.transforms import (
    Affine,
    GaussianSmooth,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

from hnseg.data.augment.intensity import convolve, integrated_gaussian
from hnseg.data.augment.spatial import resample, rotation
from hnseg.data.patch import Patch

AFFINE, BLUR, SCALE, SHIFT, NOISE, MIRROR = range(6)
SHAPE = (5, 6, 7)
SIGMA = (0.5, 1.0)


def theirs(place: int, **changes):
    """MONAI's transform at the place where our mix has its own, with other settings where given."""
    affine = {"rotate_range": [0.26] * 3, "scale_range": [0.2] * 3, "padding_mode": "border"}
    settings = [
        (RandAffined, {"prob": 0.2, "mode": ["bilinear", "nearest"], "spatial_size": SHAPE, **affine}),
        (RandGaussianSmoothd, {"prob": 0.2, "sigma_x": SIGMA, "sigma_y": SIGMA, "sigma_z": SIGMA}),
        (RandScaleIntensityd, {"prob": 0.5, "factors": 0.3}),
        (RandShiftIntensityd, {"prob": 0.5, "offsets": 0.1}),
        (RandGaussianNoised, {"prob": 0.2, "mean": 0.0, "std": 0.1}),
    ]
    make, figures = settings[place]
    keys = ["image", "label"] if place == AFFINE else ["image"]
    return make(keys=keys, **{**figures, **changes}).set_random_state(0)


def theirs_on(image: torch.Tensor, augment) -> torch.Tensor:
    return augment({"image": image, "label": torch.zeros_like(image[:1])})["image"].as_tensor()


def ours_on(image: torch.Tensor, augment) -> torch.Tensor:
    return augment(subject(image))["image"].data


def noise_image(shape=(2, *SHAPE)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def changed_channels(run, augment, draws: int = 1500) -> list[tuple[bool, ...]]:
    image = noise_image()
    seed(1)
    return [tuple((run(image, augment) != image).flatten(1).any(1).tolist()) for _ in range(draws)]


@pytest.mark.parametrize("place", [AFFINE, BLUR, SCALE, SHIFT, NOISE])
def test_each_transform_acts_as_often(place):
    reference = changed_channels(theirs_on, theirs(place))
    ours = transform("auto3dseg", place)
    assert same_frequencies(changed_channels(ours_on, ours), reference)
    spoiled = transform("auto3dseg", place, p=ours.probability + 0.1)
    assert not same_frequencies(changed_channels(ours_on, spoiled), reference)


def test_every_axis_is_mirrored_half_the_time_apart_from_the_others():
    image = coordinates((2, 2, 2))
    flips = [RandFlipd(["image"], 0.5, axis).set_random_state(axis) for axis in range(3)]

    def mirrored(make, draws: int = 800) -> list[tuple[bool, ...]]:
        seed(2)
        return [tuple((make()[:, 0, 0, 0] > 0).tolist()) for _ in range(draws)]

    def theirs_made():
        sample = {"image": image}
        for flip in flips:
            sample = flip(sample)
        return sample["image"]

    reference = mirrored(theirs_made)
    ours, spoiled = transform("auto3dseg", MIRROR), transform("auto3dseg", MIRROR, axes=[0, 1])
    assert same_frequencies(mirrored(lambda: ours_on(image, ours)), reference)
    assert not same_frequencies(mirrored(lambda: ours_on(image, spoiled)), reference)


def affine_amounts(image, out):
    matrix = slopes(out)
    # Axes run (x, y, z) there and (z, y, x) here; the ranges are the same for all.
    return [*np.linalg.norm(matrix, axis=0), *euler(matrix)]


def blur_amounts(image, out):
    """Of an impulse in the middle: the share that stays, and its neighbours', of both channels."""
    z, y, x = (n // 2 for n in out.shape[1:])
    return torch.cat([out[:, z, y, x], out[0, z + 1 : z + 2, y, x], out[0, z, y + 1 : y + 2, x]]).tolist()


def factor(image, out):
    return (out / image)[:, 0, 0, 0].tolist()


def offset(image, out):
    return (out - image)[:, 0, 0, 0].tolist()


def deviation(image, out):
    return (out - image).std(dim=(1, 2, 3)).tolist()


def impulse() -> torch.Tensor:
    image = torch.zeros((2, *SHAPE))
    image[:, 2, 3, 3] = 1
    return image


MEASURES = {
    AFFINE: (lambda: coordinates(SHAPE), affine_amounts, {"scales": 0.35}),
    BLUR: (impulse, blur_amounts, {"sigma": [0.5, 1.2]}),
    SCALE: (noise_image, factor, {"scale": 0.5}),
    SHIFT: (noise_image, offset, {"shift": 0.15}),
    NOISE: (lambda: torch.zeros((2, 6, 6, 6)), deviation, {"std": [0.0, 0.2]}),
}


@pytest.mark.parametrize("place", MEASURES)
def test_amounts_follow_the_same_law(place):
    make, measure, spoil = MEASURES[place]
    image, always = make(), theirs(place, prob=1)
    reference = drawn(lambda: measure(image, theirs_on(image, always)), 500)
    ours, spoiled = transform("auto3dseg", place, p=1), transform("auto3dseg", place, p=1, **spoil)
    assert same_law(drawn(lambda: measure(image, ours_on(image, ours)), 500), reference)
    assert not same_law(drawn(lambda: measure(image, ours_on(image, spoiled)), 500), reference)


@pytest.mark.parametrize("place", [BLUR, SCALE, SHIFT, NOISE])
def test_all_channels_are_treated_alike(place):
    make, measure, _ = MEASURES[place]
    image = make()
    for run, augment in (
        (theirs_on, theirs(place, prob=1)),
        (ours_on, transform("auto3dseg", place, p=1)),
    ):
        values = drawn(lambda run=run, augment=augment: measure(image, run(image, augment))[:2], 100)
        assert np.corrcoef(values.T)[0, 1] > 0.95  # 1 but for the noise's own scatter


@pytest.mark.parametrize("place", [SCALE, SHIFT])
def test_channels_drawn_apart_are_seen(place):
    make, measure, _ = MEASURES[place]
    image, spoiled = make(), transform("auto3dseg", place, p=1, per_channel=True)
    values = drawn(lambda: measure(image, ours_on(image, spoiled)), 100)
    assert np.corrcoef(values.T)[0, 1] < 0.5


def to_xyz(image: torch.Tensor) -> torch.Tensor:
    """(C, z, y, x) ↔ (C, x, y, z), as Auto3DSeg reads NIfTI."""
    return image.permute(0, 3, 2, 1).contiguous()


def test_a_turned_image_is_monais_with_its_border_gone_on():
    angles, scales = np.array([0.2, -0.25, 0.1]), np.array([1.15, 0.85, 1.05])  # about x, y, z
    image = noise_image((2, 20, 24, 28))
    label = (np.indices((1, 20, 24, 28)) // 7).sum(axis=0).astype(np.uint8) % 3
    affine = {"rotate_params": angles.tolist(), "scale_params": scales.tolist()}
    settings = {**affine, "padding_mode": "border"}
    expected = to_xyz(Affine(**settings)(to_xyz(image))[0])
    nearest, _ = Affine(**settings, mode="nearest")(to_xyz(torch.from_numpy(label).float()))
    sample = subject(image, torch.from_numpy(label))
    patch = Patch(sample.spatial_shape, sample.spatial_shape, (0, 0, 0))
    # Reversing the axes turns a right hand into a left one, and every angle into its negative.
    matrix = rotation(-angles[::-1]) @ np.diag(scales[::-1])
    made = resample(sample["image"], matrix, patch, "border")
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    made = resample(sample["label"], matrix, patch, "border")
    assert (made != to_xyz(nearest)).float().mean() < 1e-3  # exact ties fall either way
    for spoiled in (
        resample(sample["image"], matrix, patch, "zeros"),
        resample(sample["image"], rotation(angles[::-1]) @ np.diag(scales[::-1]), patch, "border"),
    ):
        assert (spoiled - expected).abs().max() > 0.1


@pytest.mark.parametrize("sigmas", [(0.5, 0.7, 1.0), (0.62, 0.99, 0.51)])
def test_blur_is_monais(sigmas):
    image = noise_image((2, 9, 12, 15))
    expected = GaussianSmooth(sigmas)(image).as_tensor()
    kernels = [integrated_gaussian(sigma) for sigma in sigmas]
    torch.testing.assert_close(convolve(image, kernels, "constant"), expected)
    assert not torch.allclose(convolve(image, kernels, "reflect"), expected)
