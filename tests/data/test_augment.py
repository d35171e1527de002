"""Every mix in conf/augment runs, keeps image and label together, and follows the seed."""

from pathlib import Path

import pytest
import torch
import torchio as tio
import yaml
from hydra.utils import instantiate

from hnseg.data.augment import RandomHeadCut, RandomPatchAffine, RandomScaleShift
from hnseg.data.patch import Patch

CONF = Path(__file__).parents[2] / "conf" / "augment"
MIXES = sorted(path.stem for path in CONF.glob("*.yaml"))


def subject(channels: int = 2) -> tio.Subject:
    """A bright block on ground that is 0 on average, and its label."""
    label = torch.zeros((1, 20, 24, 28), dtype=torch.uint8)
    label[:, 6:14, 8:16, 5:15] = 1
    label[:, 6:14, 8:16, 18:24] = 2
    image = label.float().repeat(channels, 1, 1, 1) * 5
    return tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))


@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_keeps_shapes_and_labels_and_follows_the_seed(mix):
    augment = instantiate(yaml.safe_load((CONF / f"{mix}.yaml").read_text()))
    seen = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        made = augment(subject())
        image, label = made["image"].data, made["label"].data
        assert image.shape == (2, 20, 24, 28)
        assert image.isfinite().all()
        assert set(label.unique().tolist()) <= {0, 1, 2}
        seen.append(image)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    changed = any(not torch.equal(seen[0], other) for other in seen[2:])
    assert changed == (mix != "none")


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix != "none"])
def test_the_label_moves_with_the_image(mix):
    augment = instantiate(yaml.safe_load((CONF / f"{mix}.yaml").read_text()))
    torch.manual_seed(0)
    for _ in range(6):
        made = augment(subject())
        # Bright is what the label says is bright: 0, 5 and 10, up to noise, scale and partial volume.
        bright, truth = made["image"].data.mean(0) > 2.5, made["label"].data[0] > 0
        dice = 2 * (bright & truth).sum() / (bright.sum() + truth.sum())
        assert dice > 0.85


def test_scale_and_shift_stay_within_their_bounds_and_differ_between_channels():
    torch.manual_seed(0)
    image = torch.ones((50, 2, 2, 2))
    image[:, 0] = 0
    made = RandomScaleShift(scale=0.3, shift=0.1)(tio.Subject(image=tio.ScalarImage(tensor=image)))
    data = made["image"].data
    shift, factor = data[:, 0, 0, 0], data[:, 1, 0, 0] - data[:, 0, 0, 0]
    assert shift.abs().max() <= 0.1
    assert ((factor >= 0.7) & (factor <= 1.3)).all()
    assert shift.abs().max() > 0.05  # and they are used
    assert factor.std() > 0.1
    for row in (0, 1):  # one factor and one shift a channel, whatever the voxel
        assert (data[:, row] == data[:, row, :1, :1]).all()


def test_scale_and_shift_are_shared_by_all_channels_on_demand():
    torch.manual_seed(0)
    image = torch.arange(8.0).reshape(1, 2, 2, 2).repeat(3, 1, 1, 1)
    augment = RandomScaleShift(scale=0.3, shift=0.1, per_channel=False)
    data = augment(tio.Subject(image=tio.ScalarImage(tensor=image)))["image"].data
    assert (data == data[:1]).all()
    assert not torch.equal(data, image)


def test_scale_and_shift_leave_labels_alone():
    made = RandomScaleShift(scale=0.3, shift=0.1)(subject())
    torch.testing.assert_close(made["label"].data, subject()["label"].data)


def test_the_left_right_axis_is_the_one_that_light_mirrors():
    # Arrays are (z, y, x): the last axis is left to right, which alone leaves an anatomy an anatomy.
    flip = yaml.safe_load((CONF / "light.yaml").read_text())["transforms"]["flip"]
    made = instantiate(flip | {"flip_probability": 1.0})(subject())
    torch.testing.assert_close(made["label"].data, subject()["label"].data.flip(-1))


def test_a_turned_patch_shows_the_anatomy_around_it_instead_of_empty_corners():
    torch.manual_seed(0)
    size = (8, 8, 8)
    augment = RandomPatchAffine(p_rotation=1, p_scaling=0)
    around = augment.around(size)
    whole = tio.Subject(
        image=tio.ScalarImage(tensor=torch.ones((1, *around))),
        label=tio.LabelMap(tensor=torch.ones((1, *around), dtype=torch.uint8)),
    )
    alone = tio.Subject({name: image for name, image in whole.items()})
    whole["patch"] = Patch(size, around, (0, 0, 0))
    made = augment(whole)
    assert made["image"].shape == made["label"].shape == (1, *size)
    assert made["image"].data.min() > 0.99
    assert made["label"].data.min() == 1
    made = augment(alone)  # has nothing around it
    assert made["image"].data.min() == 0
    assert made["label"].data.min() == 0


def scan_with_head(depth: int = 20, bottom: int = 8, top: int = 16) -> tio.Subject:
    """CT and PET whose slices hold their own number, air as -1000 HU; slice 0 is the lowest (z, y, x)."""
    slices = torch.arange(float(depth))[None, :, None, None].repeat(1, 1, 3, 4)
    ct = slices.clone()
    ct[..., 0] = -1000
    label = torch.zeros((1, depth, 3, 4), dtype=torch.uint8)
    label[:, bottom:top, 1:, 1:3] = 1
    return tio.Subject(
        ct=tio.ScalarImage(tensor=ct), pet=tio.ScalarImage(tensor=slices), label=tio.LabelMap(tensor=label)
    )


def test_a_cut_scan_hangs_from_the_top_with_air_below():
    torch.manual_seed(0)
    scan = scan_with_head()
    heights = []
    for _ in range(300):
        cut = RandomHeadCut()(scan)
        kept = int(cut["pet"].data[0, -1, 0, 0]) + 1  # what is now on top
        heights.append(kept)
        lost = 20 - kept
        assert (cut["ct"].data[:, :lost] == -1000).all()
        assert (cut["pet"].data[:, :lost] == 0).all()
        assert (cut["label"].data[:, :lost] == 0).all()
        for name in ("ct", "pet", "label"):
            torch.testing.assert_close(cut[name].data[:, lost:], scan[name].data[:, :kept], rtol=0, atol=0)
    # From half the body beneath the head up to the head's top; below the head as often as through it.
    assert set(heights) == set(range(4, 17))
    whole_head_lost = sum(kept <= 8 for kept in heights) / 300
    assert 0.4 < whole_head_lost < 0.7
    lost_heads = [RandomHeadCut()(scan)["label"].data.any().item() for _ in range(100)]
    assert {True, False} == set(lost_heads)


def test_a_scan_without_head_is_not_cut():
    scan = scan_with_head(bottom=0, top=0)
    made = RandomHeadCut()(scan)
    for name in ("ct", "pet", "label"):
        torch.testing.assert_close(made[name].data, scan[name].data, rtol=0, atol=0)


def test_a_head_that_fills_the_grid_leaves_a_slice_at_least():
    torch.manual_seed(0)
    scan = scan_with_head(depth=4, bottom=0, top=4)
    kept = {int(RandomHeadCut()(scan)["pet"].data[0, -1, 0, 0]) + 1 for _ in range(60)}
    assert kept == {1, 2, 3, 4}
