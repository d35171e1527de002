"""Transforms do what they say by the parameters they draw, alike in every batch and on every device."""

from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from mixes import MIXES, mix
from scipy.ndimage import gaussian_filter
from spoiled import must_fail
from volumes import lesions, write_volume

from hnseg.card import InputSpec
from hnseg.config import compose_job
from hnseg.data.augment import (
    Compose,
    RandomContrast,
    RandomDropout,
    RandomFlip,
    RandomGamma,
    RandomHeadTruncation,
    RandomMisalignment,
    RandomNoise,
    RandomScaleShift,
    Sample,
    Streams,
)
from hnseg.data.augment.spatial import HeadTruncation, Shift
from hnseg.data.dataset import PatchDataset
from hnseg.training.fit import make_scan_augment


def block(number: int = 0, seed: int = 0) -> Sample:
    """Bright blocks on ground that is 0 on average, and their label."""
    label = torch.zeros((20, 24, 28), dtype=torch.uint8)
    label[6:14, 8:16, 5:15] = 1
    label[6:14, 8:16, 18:24] = 2
    return Sample("A", label.float().repeat(2, 1, 1, 1) * 5, label, Streams(seed, number), 2)


def changed(augment: Compose, number: int = 0, seed: int = 0) -> Sample:
    sample = block(number, seed)
    augment([sample])
    return sample


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_keeps_shapes_and_labels_and_follows_the_seed(name):
    augment = mix(name)
    made = [changed(augment, number) for number in (0, 0, 1, 2, 3)]
    for sample in made:
        assert sample.image.shape == (2, 20, 24, 28)
        assert (sample.label.shape, sample.label.dtype) == ((20, 24, 28), torch.uint8)
        assert sample.image.isfinite().all()
        assert set(sample.label.unique().tolist()) <= {0, 1, 2}
    assert torch.equal(made[0].image, made[1].image)
    assert any(not torch.equal(made[0].image, other.image) for other in made[2:]) == (name != "none")
    assert name == "none" or not all(
        torch.equal(changed(augment, n).image, changed(augment, n, seed=1).image) for n in range(4)
    )


@pytest.mark.parametrize("name", [name for name in MIXES if name != "none"])
def test_the_label_moves_with_the_image(name):
    augment = mix(name)
    for number in range(6):
        made = changed(augment, number)
        # Bright is what the label says is bright: 0, 5 and 10, up to noise, scale and partial volume.
        bright, truth = made.image.mean(0) > 2.5, made.label > 0
        assert 2 * (bright & truth).sum() / (bright.sum() + truth.sum()) > 0.85


def test_a_further_transform_moves_no_other_one_s_parameters():
    """Each draws from a stream of its own, so that the same sample keeps its noise."""
    noise = RandomNoise(std=(0.5, 1.0))
    alone, after = Compose({"noise": noise}), Compose({"gamma": RandomGamma(p=0), "noise": noise})
    assert torch.equal(changed(alone).image, changed(after).image)
    assert not torch.equal(changed(alone).image, changed(Compose({"other": noise})).image)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["nnunet", "auto3dseg"])
def test_a_gpu_changes_alike(name):
    """Up to rounding and its own noise: the same labels but for ties, the same mean and spread."""
    augment = mix(name)
    here, there = [block(n) for n in range(60)], [block(n).to(torch.device("cuda")) for n in range(60)]
    augment(here)
    augment(there)
    labels = [torch.stack([sample.label.cpu() for sample in samples]) for samples in (here, there)]
    assert (labels[0] != labels[1]).float().mean() < 1e-3
    images = [torch.stack([sample.image.cpu() for sample in samples]) for samples in (here, there)]
    for measure in (torch.mean, torch.std):
        torch.testing.assert_close(measure(images[1]), measure(images[0]), rtol=0.01, atol=0.01)


def test_no_transform_reads_a_number_from_the_device():
    """Tensors without numbers, of which none could be read; a patch without lesions is one of these too."""
    augment = Compose({name: t for name, t in mix("nnunet").transforms.items() if name != "noise"})
    for transform in augment.transforms.values():
        transform.p = 1.0
    for classes in (0, 2):
        image, label = torch.empty(2, 8, 9, 10, device="meta"), torch.empty(8, 9, 10, device="meta")
        sample = Sample("A", image, label.to(torch.uint8), Streams(0, 0), classes)
        augment([sample])
        assert (sample.image.device.type, sample.image.shape) == ("meta", (2, 8, 9, 10))


# --- intensities -----------------------------------------------------------------------------------------


def test_parameters_stay_within_their_bounds_and_channels_differ_or_share():
    scale = RandomScaleShift(scale=0.3, shift=0.1)
    rows = np.concatenate([scale.draw(Streams(0, n)("x"), 3) for n in range(100)])
    assert rows.shape == (300, 2)
    assert ((rows[:, 0] >= 0.7) & (rows[:, 0] <= 1.3)).all()
    assert (abs(rows[:, 1]) <= 0.1).all()
    assert len(np.unique(rows[:, 0])) == 300
    shared = RandomScaleShift(scale=0.3, per_channel=False).draw(Streams(0, 0)("x"), 3)
    assert (shared == shared[0]).all()
    factors = [RandomContrast(factor=(0.5, 3.0)).draw(Streams(0, n)("x"), 1)[0, 0] for n in range(400)]
    assert 0.4 < np.mean(np.array(factors) < 1) < 0.6  # below 1 as often as above it, however far the bounds


def test_channels_that_are_not_drawn_stay_as_they_are():
    image = torch.rand(3, 6, 6, 6)
    rows = np.array([[1.1, 0.0], [np.nan, np.nan], [1.0, 0.5]])
    made = image.clone()
    RandomScaleShift().apply_to_images(made[None], rows[None])
    torch.testing.assert_close(made, torch.stack([image[0] * 1.1, image[1], image[2] + 0.5]))


# --- geometry --------------------------------------------------------------------------------------------


def test_mirroring_flips_image_and_label_along_the_drawn_axes():
    sample = block()
    RandomFlip().move(sample, [0, 2])
    assert torch.equal(sample.image, block().image.flip([1, 3]))
    assert torch.equal(sample.label, block().label.flip([0, 2]))
    # Arrays are (z, y, x): the last axis is left to right, which alone leaves an anatomy an anatomy.
    axes = [mix("light").transforms["mirror"].draw(Streams(0, n)("x"), 2) for n in range(20)]
    assert {tuple(drawn or ()) for drawn in axes} == {(), (2,)}


# --- scans -----------------------------------------------------------------------------------------------

SPACING = (1.0, 2.0, 3.0)  # x, y, z
SHAPE = (24, 32, 40)


def scan(seed: int = 0, modalities: int = 2) -> Sample:
    rng = np.random.default_rng(seed)
    smooth = [gaussian_filter(rng.normal(0, 1, SHAPE), 3).astype(np.float32) * 50 for _ in range(modalities)]
    return Sample(
        "A", torch.from_numpy(np.stack(smooth)), torch.from_numpy(lesions(SHAPE, seed)), Streams(seed, 0), 2
    )


def moved_by_simpleitk(pet: np.ndarray, radians: np.ndarray, mm: list[float]) -> np.ndarray:
    """(z, y, x), turned about its middle by angles about z, y, x, and shifted by mm along z, y, x."""
    image = sitk.GetImageFromArray(pet)
    image.SetSpacing(SPACING)
    turn = sitk.Euler3DTransform(
        image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    )
    about = [sitk.Euler3DTransform() for _ in range(3)]
    # Axes named z, y, x make a left-handed frame: the same turn runs the other way.
    about[0].SetRotation(0, 0, -radians[0])
    about[1].SetRotation(0, -radians[1], 0)
    about[2].SetRotation(-radians[2], 0, 0)
    z, y, x = (np.reshape(one.GetMatrix(), (3, 3)) for one in about)
    turn.SetMatrix((x @ y @ z).ravel())
    turn.SetTranslation(mm[::-1])
    return sitk.GetArrayFromImage(sitk.Resample(image, image, turn, sitk.sitkLinear, float("nan")))


@pytest.mark.parametrize(
    ("degrees", "mm"), [([0, 0, 0], [3, -2, 1.5]), ([8, 0, 0], [0, 0, 0]), ([5, -7, 10], [-3.2, 1.1, 0.4])]
)
def test_pet_is_moved_as_simpleitk_moves_it_in_mm(degrees, mm) -> None:
    before, radians = scan(), np.deg2rad(degrees)
    expected = moved_by_simpleitk(before.image[1].numpy(), radians, mm)
    inside = np.isfinite(expected)
    assert inside.mean() > 0.5
    compare = partial(np.testing.assert_allclose, desired=expected[inside], atol=2e-4)
    after, shift = scan(), Shift(radians, np.array(mm))
    RandomMisalignment(spacing=SPACING).move(after, shift)
    compare(after.image[1].numpy()[inside])
    assert torch.equal(after.image[0], before.image[0])
    assert torch.equal(after.label, before.label)
    with must_fail():  # voxels that were taken for cubes of 1 mm
        after = scan()
        RandomMisalignment(spacing=(1.0, 1.0, 1.0)).move(after, shift)
        compare(after.image[1].numpy()[inside])


def scan_with_head(depth: int = 20, bottom: int = 8, top: int = 16) -> Sample:
    """CT and PET whose slices hold their own number, air as -1000 HU; slice 0 is the lowest (z, y, x)."""
    slices = torch.arange(float(depth))[:, None, None].repeat(1, 3, 4)
    ct = slices.clone()
    ct[..., 0] = -1000
    label = torch.zeros((depth, 3, 4), dtype=torch.uint8)
    label[bottom:top, 1:, 1:3] = 1
    return Sample("A", torch.stack([ct, slices]), label, Streams(0, 0), 1)


def test_a_cut_scan_hangs_from_the_top_with_air_below():
    kept = []
    for through_head in (True, False):
        for height in (0.0, 0.3, 0.55, 0.999):
            scan, cut = scan_with_head(), scan_with_head()
            RandomHeadTruncation().move(cut, HeadTruncation(through_head, height))
            kept.append(int(cut.image[1, -1, 0, 0]) + 1)  # what is now on top
            lost = 20 - kept[-1]
            assert (cut.image[0, :lost] == -1000).all()
            assert not cut.image[1, :lost].any()
            assert not cut.label[:lost].any()
            assert torch.equal(cut.image[:, lost:], scan.image[:, : kept[-1]])
            assert torch.equal(cut.label[lost:], scan.label[: kept[-1]])
    # From the head's bottom to its top, and from half the body beneath the head to the head.
    assert kept == [8, 10, 12, 16, 4, 5, 6, 8]
    through = [RandomHeadTruncation().draw(Streams(0, n)("x"), 1).through_head for n in range(400)]
    assert 0.4 < np.mean(through) < 0.6


def test_scans_are_changed_before_enhancement(tmp_path) -> None:
    volumes = [write_volume(tmp_path, "A-0", lesions((16, 16, 16), 0))]
    spec = InputSpec(cte=True, pet="suv", pet_powers=("square",))
    train = partial(PatchDataset, volumes, spec, (16, 16, 16), 2, None, 0)
    emptied = train(scan_augment=Compose({"dropout": RandomDropout()}))[0]["image"]
    assert not emptied[3:].any()  # PET and PET²
    assert torch.equal(emptied[:3], train()[0]["image"][:3])
    moved = train(scan_augment=Compose({"misaligned": RandomMisalignment(spacing=(1, 1, 1))}))[0]["image"]
    assert not torch.equal(moved[3], train()[0]["image"][3])
    torch.testing.assert_close(moved[4], moved[3].square())


def test_a_training_takes_the_scan_transforms_that_are_configured() -> None:
    assert make_scan_augment(compose_job([])) is None
    everything = make_scan_augment(compose_job(["scan_augment=all"])).transforms
    assert list(everything) == ["misaligned", "pet_dropout", "low_resolution"]
    assert tuple(everything["misaligned"].spacing) == (1, 1, 1)  # the stage's
    head = ["stage=localiser", "model=plainconv", "recipe.head_truncation=0.2", "scan_augment=low_resolution"]
    assert list(make_scan_augment(compose_job(head)).transforms) == ["head_truncation", "low_resolution"]
