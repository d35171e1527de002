"""conf/augment/auto3dseg.yaml against MONAI's transforms, set as Auto3DSeg's SegResNet template sets them.

The template's own code is not on PyPI; its figures stand here (get_augment_transforms, default mode). Each
comparison has a spoiled twin, which must fail.
"""

from typing import Any

import numpy as np
import pytest
import torch
from draws import drawn, noise_image, parameters, same_law, sample
from mixes import transform
from monai.transforms import (
    Affine,
    GaussianSmooth,
    RandAffineGrid,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    ScaleIntensity,
    ShiftIntensity,
)

from hnseg.data.augment import RandomAffine
from hnseg.data.augment import spatial as augment_spatial

PROBABILITIES = {"affine": 0.2, "blur": 0.2, "scale": 0.5, "shift": 0.5, "noise": 0.2}
IMAGE = noise_image()


@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_transform_acts_as_often_and_on_all_channels_alike(name):
    ours = transform("auto3dseg", name)
    assert ours.p == PROBABILITIES[name]
    drawn_ours = parameters(ours, 4000)
    if name == "affine":
        acting = np.array([not affine.is_identity for affine in drawn_ours])
    else:
        rows = np.stack(drawn_ours)
        acting = ~np.isnan(rows[:, 0, 0])
        assert np.array_equal(rows[acting, 0, 0], rows[acting, 1, 0])
    assert acting.mean() == pytest.approx(ours.p, abs=0.04)


def their_law(name: str) -> np.ndarray:
    """Parameters that MONAI draws, in our order of axes (z, y, x)."""
    if name == "affine":
        grid = RandAffineGrid(rotate_range=[0.26] * 3, scale_range=[0.2] * 3).set_random_state(0)

        def affine() -> list[float]:
            grid.randomize()
            return [*grid.rotate_params, *grid.scale_params]

        return drawn(affine, 500)
    if name == "blur":
        smooth = RandGaussianSmooth((0.5, 1), (0.5, 1), (0.5, 1), prob=1).set_random_state(0)
        return drawn(lambda: (smooth.randomize(), smooth.z, smooth.y, smooth.x)[1:], 500)
    if name == "noise":
        noise = RandGaussianNoise(prob=1, mean=0, std=0.1).set_random_state(0)
        return drawn(lambda: [float(noise(torch.zeros(1, 12, 12, 12)).std())], 500)
    factors = RandScaleIntensity(0.3 if name == "scale" else 0.1, prob=1).set_random_state(0)
    return drawn(lambda: [(factors.randomize(), factors.factor)[1] + (name == "scale")], 500)


def our_law(name: str, **changes: Any) -> np.ndarray:
    drawn_ours = parameters(transform("auto3dseg", name, p=1, **changes), 500, channels=1)
    if name == "affine":
        return np.array([[*affine.angles, *affine.factors] for affine in drawn_ours])
    rows = np.stack(drawn_ours)[:, 0]
    return {"blur": rows, "noise": rows[:, :1], "scale": rows[:, :1], "shift": rows[:, 1:]}[name]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("affine", {"scaling": [0.7, 1.2]}),
        ("affine", {"degrees": 25}),
        ("blur", {"sigma": [0.5, 1.2]}),
        ("scale", {"scale": 0.5}),
        ("shift", {"shift": 0.15}),
        ("noise", {"std": [0.0, 0.15]}),
    ],
)
def test_parameters_follow_the_same_law(name, spoil):
    reference = their_law(name)
    assert same_law(our_law(name), reference)
    assert not same_law(our_law(name, **spoil), reference)


@pytest.mark.parametrize(
    ("name", "values", "theirs"),
    [
        ("scale", [1.2, 0.0], ScaleIntensity(minv=None, maxv=None, factor=0.2)),
        ("shift", [1.0, -0.07], ShiftIntensity(-0.07)),
        ("blur", [0.5, 0.7, 1.0], GaussianSmooth((0.5, 0.7, 1.0))),
        ("blur", [0.62, 0.99, 0.51], GaussianSmooth((0.62, 0.99, 0.51))),
    ],
)
def test_outputs_for_given_parameters_are_monais(name, values, theirs):
    expected, ours = theirs(IMAGE).as_tensor(), transform("auto3dseg", name)
    changed = ours.change(IMAGE.clone(), np.array([values] * 2))
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=1e-5)
    spoiled = ours.change(IMAGE.clone(), np.array([values] * 2) * 0.9)
    assert not torch.allclose(spoiled, expected, atol=1e-3)


def to_xyz(image: torch.Tensor) -> torch.Tensor:
    """(C, z, y, x) ↔ (C, x, y, z), as Auto3DSeg reads NIfTI."""
    return image.permute(0, 3, 2, 1).contiguous()


def test_a_turned_image_is_monais_with_its_border_gone_on():
    angles, scales = np.array([0.2, -0.25, 0.1]), np.array([1.15, 0.85, 1.05])  # about x, y, z
    image = noise_image((2, 20, 24, 28))
    label = (np.indices((1, 20, 24, 28)) // 7).sum(axis=0).astype(np.uint8) % 3
    settings: dict[str, Any] = {"rotate_params": angles.tolist(), "scale_params": scales.tolist()}
    expected = to_xyz(Affine(**settings, padding_mode="border")(to_xyz(image))[0])
    nearest, _ = Affine(**settings, padding_mode="border", mode="nearest")(
        to_xyz(torch.from_numpy(label).float())
    )

    def turned(about_z_y_x: np.ndarray, outside: str) -> Any:
        made = sample(image, torch.from_numpy(label[0]))
        RandomAffine(outside=outside).move(made, augment_spatial.Affine(about_z_y_x, scales[::-1]))  # type: ignore[arg-type]
        return made

    # Reversing the axes turns a right hand into a left one, and every angle into its negative.
    made = turned(-angles[::-1], "border")
    torch.testing.assert_close(made.image, expected, atol=1e-4, rtol=1e-4)
    assert (made.label != to_xyz(nearest)[0]).float().mean() < 1e-3  # exact ties fall either way
    assert (turned(-angles[::-1], "zeros").image - expected).abs().max() > 0.1
    assert (turned(angles[::-1], "border").image - expected).abs().max() > 0.1
