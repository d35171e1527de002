"""Turning and scaling of patches against nnU-Net's SpatialTransform, and the cut it reads them from.

Each comparison has a spoiled twin: one of our constants is changed, and the comparison must fail.
"""

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from draws import drawn, parameters, same_frequencies, same_law, sample
from mixes import transform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from hnseg.data.augment import RandomAffine
from hnseg.data.augment.spatial import Affine
from hnseg.data.patch import Patch

DEGREES = np.deg2rad(30)
NNUNET = RandomAffine(degrees=30, smallest_scale=0.85)


def measures(matrix: np.ndarray) -> list[float]:
    """The isotropic factor, and the angles about axes 0, 1 and 2 of R_2 R_1 R_0, radians."""
    factor = np.cbrt(np.linalg.det(matrix))
    turn = matrix / factor
    return [
        factor,
        np.arctan2(turn[2, 1], turn[2, 2]),
        np.arcsin(np.clip(-turn[2, 0], -1, 1)),
        np.arctan2(turn[1, 0], turn[0, 0]),
    ]


def ours(draws: int, **changes) -> np.ndarray:
    return np.array([measures(a.matrix) for a in parameters(transform("nnunet", "affine", **changes), draws)])


def theirs(draws: int, **changes) -> np.ndarray:
    mix = nnUNetTrainer.get_training_transforms((4, 5, 6), (-DEGREES, DEGREES), None, (0, 1, 2), False)
    augment, image = mix.transforms[0], torch.zeros(1, 4, 5, 6)
    vars(augment).update(changes)

    def measure() -> list[float]:
        affine = augment.get_parameters(image=image)["affine"]
        return measures(np.eye(3) if affine is None else np.asarray(affine, float))

    return drawn(measure, draws)


def acts(affines: np.ndarray) -> list[tuple[bool, bool]]:
    scaled, turned = abs(affines[:, 0] - 1) > 1e-4, (abs(affines[:, 1:]) > 1e-4).any(axis=1)
    return list(zip(scaled.tolist(), turned.tolist(), strict=True))


def test_patches_turn_and_scale_as_often():
    reference = acts(theirs(1500))
    assert same_frequencies(acts(ours(1500)), reference)
    assert not same_frequencies(acts(ours(1500, p_scaling=0.4)), reference)


@pytest.mark.parametrize("spoil", [{"degrees": 15}, {"scaling": [0.85, 1.25]}])
def test_angles_and_scales_follow_the_same_law(spoil):
    always = {"p_rotation": 1, "p_scaling": 1}
    reference = theirs(600, **always)
    assert same_law(ours(600, **always), reference)
    assert not same_law(ours(600, **always, **spoil), reference)


@pytest.mark.parametrize("size", [(128, 128, 128), (160, 160, 160), (96, 160, 160), (31, 40, 57)])
def test_surroundings_are_as_large_as_nnunets(size):
    expected = tuple(get_patch_size(size, *[(-DEGREES, DEGREES)] * 3, (0.85, 1.25)))
    assert NNUNET.surroundings(size) == expected
    assert RandomAffine(degrees=30, smallest_scale=0.7).surroundings(size) != expected


def both_turned(angles, scale, start, size=(12, 14, 17)):
    """One patch, turned by us out of the whole volume and by nnU-Net out of the cut it would make."""
    rng = np.random.default_rng(3)
    image = rng.normal(size=(2, 20, 24, 28)).astype(np.float32)
    label = (np.indices((1, 20, 24, 28)) // 7).sum(axis=0).astype(np.int16) % 3  # blocks of all classes
    around = NNUNET.surroundings(size)
    box = [[a, a + n] for a, n in zip(start, around, strict=True)]
    reference = SpatialTransform(
        size, 0, False, p_rotation=1, rotation=lambda image, dim: angles[dim], p_scaling=1,
        scaling=(scale, scale), p_synchronize_scaling_across_axes=1, bg_style_seg_sampling=False,
        border_mode_seg="constant", padding_value_seg=-1,
    )(
        image=torch.from_numpy(crop_and_pad_nd(image, box, 0)),
        segmentation=torch.from_numpy(crop_and_pad_nd(label, box, -1)),
    )  # fmt: skip
    made = sample(torch.from_numpy(image), torch.from_numpy(label[0].astype(np.uint8)))
    made.patch = Patch(size, around, tuple(start))
    NNUNET.move(made, Affine(np.array(angles), np.full(3, scale)))
    return made, reference["image"], reference["segmentation"][0].clamp_min(0)


@pytest.mark.parametrize("start", [(-6, -4, -5), (-9, 3, 2), (0, 0, 1)])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
def test_a_turned_patch_is_nnunets(start, scale):
    made, expected, label = both_turned((0.4, -0.3, 0.5), scale, start)
    torch.testing.assert_close(made.image, expected, atol=1e-4, rtol=1e-4)
    # nnU-Net's 16-bit weights and its own label for what lies outside settle near ties otherwise.
    assert (made.label != label).float().mean() < 0.005
    assert len(label.unique()) == 3
    wrong, _, _ = both_turned((0.4, -0.3, -0.5), scale, start)
    assert (wrong.image - expected).abs().max() > 0.1


def test_an_unturned_patch_is_the_middle_of_nnunets_cut():
    image = torch.randn((2, 20, 24, 28), generator=torch.Generator().manual_seed(5))
    size, start = (7, 10, 12), (-5, 3, 12)
    around = NNUNET.surroundings(size)
    box = [[a, a + n] for a, n in zip(start, around, strict=True)]
    cut = torch.from_numpy(crop_and_pad_nd(image.numpy(), box, 0))
    expected = SpatialTransform(size, 0, False)(image=cut)["image"]
    torch.testing.assert_close(Patch(size, around, start).cut(image), expected, rtol=0, atol=0)
    assert not torch.equal(Patch(size, around, (start[0] + 1, *start[1:])).cut(image), expected)
