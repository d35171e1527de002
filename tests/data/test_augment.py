"""Every mix in conf/augment runs, keeps image and label together, and follows the seed."""

from pathlib import Path

import pytest
import torch
import torchio as tio
import yaml
from hydra.utils import instantiate

from hnseg.data.augment import RandomScaleShift

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


def test_scale_and_shift_leave_labels_alone():
    made = RandomScaleShift(scale=0.3, shift=0.1)(subject())
    torch.testing.assert_close(made["label"].data, subject()["label"].data)


def test_the_left_right_axis_is_the_one_that_light_mirrors():
    # Arrays are (z, y, x): the last axis is left to right, which alone leaves an anatomy an anatomy.
    flip = yaml.safe_load((CONF / "light.yaml").read_text())["transforms"][0]
    made = instantiate(flip | {"flip_probability": 1.0})(subject())
    torch.testing.assert_close(made["label"].data, subject()["label"].data.flip(-1))
