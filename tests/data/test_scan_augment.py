"""What is done to CT and PET before they become channels: moved as SimpleITK moves, emptied, coarsened."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio
from entry import compose_job
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.ndimage import gaussian_filter
from spoiled import must_fail
from volumes import lesions, write_volume

from hnseg.data.augment import RandomDropout, RandomLowResolution, RandomMisalignment
from hnseg.data.augment import spatial as subject_of_draws
from hnseg.data.dataset import PatchDataset
from hnseg.data.intensity import InputSpec, Normalise
from hnseg.job import make_stage, scan_augment

SPACING = (1.0, 2.0, 3.0)  # x, y, z
SHAPE = (24, 32, 40)


def scan(seed: int = 0) -> tio.Subject:
    rng = np.random.default_rng(seed)
    smooth = [gaussian_filter(rng.normal(0, 1, SHAPE), 3).astype(np.float32) * 50 for _ in range(2)]
    label = torch.from_numpy(lesions(SHAPE, seed))[None]
    ct, pet = (tio.ScalarImage(tensor=torch.from_numpy(one)[None]) for one in smooth)
    return tio.Subject(ct=ct, pet=pet, label=tio.LabelMap(tensor=label))


def moved_by_simpleitk(pet: np.ndarray, radians: list[float], mm: list[float]) -> np.ndarray:
    """(z, y, x), turned about its middle by angles about z, y, x, and shifted by mm along z, y, x."""
    image = sitk.GetImageFromArray(pet)
    image.SetSpacing(SPACING)
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    turn = sitk.Euler3DTransform(middle)
    # Axes named z, y, x make a left-handed frame: the same turn runs the other way.
    turn.SetMatrix(composed(radians).ravel())
    turn.SetTranslation(mm[::-1])
    return sitk.GetArrayFromImage(sitk.Resample(image, image, turn, sitk.sitkLinear, float("nan")))


def composed(radians: list[float]) -> np.ndarray:
    """About z, then y, then x, as a matrix on (x, y, z) columns."""
    about_z, about_y, about_x = (sitk.Euler3DTransform() for _ in range(3))
    about_z.SetRotation(0, 0, -radians[0])
    about_y.SetRotation(0, -radians[1], 0)
    about_x.SetRotation(-radians[2], 0, 0)
    z, y, x = (np.reshape(one.GetMatrix(), (3, 3)) for one in (about_z, about_y, about_x))
    return x @ y @ z


@pytest.mark.parametrize(
    ("degrees", "mm"), [([0, 0, 0], [3, -2, 1.5]), ([8, 0, 0], [0, 0, 0]), ([5, -7, 10], [-3.2, 1.1, 0.4])]
)
def test_pet_is_moved_as_simpleitk_moves_it_in_mm(monkeypatch, degrees, mm) -> None:
    before = scan()
    draws = iter([*degrees, *mm] * 2)
    monkeypatch.setattr(subject_of_draws, "uniform", lambda low, high: next(draws))
    expected = moved_by_simpleitk(before["pet"].numpy()[0], np.deg2rad(degrees).tolist(), mm)
    inside = np.isfinite(expected)
    assert inside.mean() > 0.5
    compare = partial(np.testing.assert_allclose, desired=expected[inside], atol=2e-4)
    after = RandomMisalignment(spacing=SPACING)(scan())
    compare(after["pet"].numpy()[0][inside])
    assert torch.equal(after["ct"].data, before["ct"].data)
    assert torch.equal(after["label"].data, before["label"].data)
    with must_fail():  # voxels that were taken for cubes of 1 mm
        compare(RandomMisalignment(spacing=(1.0, 1.0, 1.0))(scan())["pet"].numpy()[0][inside])


def test_a_shift_stays_within_its_bounds_and_the_border_goes_on() -> None:
    ramp = torch.arange(40.0).expand(1, *SHAPE)
    for seed in range(20):
        torch.manual_seed(seed)
        subject = tio.Subject(ct=tio.ScalarImage(tensor=ramp), pet=tio.ScalarImage(tensor=ramp))
        moved = RandomMisalignment(spacing=SPACING, mm=2.5, degrees=0.0)(subject)["pet"].data[0]
        shift = (moved - ramp[0])[:, :, 5:-5]
        assert shift.abs().max() <= 2.5 + 1e-4
        assert shift.max() - shift.min() < 1e-4
        assert moved.min() >= -1e-4
        assert moved.max() <= 39 + 1e-4


@pytest.mark.parametrize("scheme", ["zscore", "sigmoid", "cohort", "none"])
def test_an_emptied_pet_is_one_finite_value_whatever_follows(scheme: str) -> None:
    before, after = scan(), RandomDropout()(scan())
    assert torch.equal(after["ct"].data, before["ct"].data)
    assert not after["pet"].data.any()
    told = {"cohort": {"mean": 0.1, "std": 0.2}}.get(scheme, {})
    pet = Normalise(scheme, **told)  # type: ignore[arg-type]
    shown = InputSpec(pet="suv", normalise=(Normalise("none"), pet)).transform()(after)["image"].data[1]
    assert shown.isfinite().all()
    # No activity by hand: 0 SUV, which is what each formula makes of a 0 among zeros.
    expected = {"zscore": 0.0, "sigmoid": 0.5, "cohort": -0.5, "none": 0.0}[scheme]
    torch.testing.assert_close(shown, torch.full_like(shown, expected))


def test_each_happens_as_often_as_told() -> None:
    for kind in (RandomDropout(p=0.25), RandomMisalignment(p=0.25, spacing=SPACING)):
        torch.manual_seed(0)
        changed = sum(not torch.equal(kind(scan())["pet"].data, scan()["pet"].data) for _ in range(200))
        assert 30 <= changed <= 70  # 50 expected, with a standard deviation of 6


def test_modalities_are_coarsened_apart() -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        after = RandomLowResolution(p_channel=0.5)(scan())
        seen.add(tuple(torch.equal(after[name].data, scan()[name].data) for name in ("ct", "pet")))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("none", []),
        ("misaligned", ["RandomMisalignment"]),
        ("pet_dropout", ["RandomDropout"]),
        ("low_resolution", ["RandomLowResolution"]),
        ("all", ["RandomMisalignment", "RandomDropout", "RandomLowResolution"]),
    ],
)
def test_a_choice_names_its_transforms(choice: str, names: list[str]) -> None:
    cfg = compose_job("train", f"scan_augment={choice}", "stage=coarse", "model=plainconv")
    transforms = [instantiate(one) for one in cfg.scan_augment.values()]
    assert [type(one).__name__ for one in transforms] == names
    if choice == "misaligned":
        assert list(transforms[0].spacing) == [2, 2, 2]  # the stage's


def test_scans_are_changed_before_enhancement_and_follow_the_seed(tmp_path) -> None:
    volumes = [write_volume(tmp_path, "A-0", lesions((16, 16, 16), 0))]
    spec = InputSpec(cte=True, pet="suv", pet_powers=("square",))
    train = partial(PatchDataset, volumes, spec, (16, 16, 16), 2, None, 0)
    emptied = train(scan_augment=RandomDropout())[0]["image"]
    assert not emptied[3:].any()  # PET and PET²
    assert torch.equal(emptied[:3], train()[0]["image"][:3])
    moved = [train(scan_augment=RandomMisalignment(spacing=(1, 1, 1)))[n]["image"] for n in (0, 0, 1)]
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    torch.testing.assert_close(moved[0][4], moved[0][3].square())


def test_a_training_takes_what_is_configured() -> None:
    for overrides, expected in (
        ([], "NoneType"),
        (["scan_augment=pet_dropout"], "RandomDropout"),
        (["stage=head", "model=plainconv", "recipe.cut_head=0.2"], "RandomHeadCut"),
        (["stage=head", "model=plainconv", "recipe.cut_head=0.2", "scan_augment=low_resolution"], "Compose"),
    ):
        cfg = compose_job("train", *overrides)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        assert type(scan_augment(config, make_stage(config))).__name__ == expected


def test_a_stage_without_pet_stays_as_it_is():
    whole = scan()
    for transform in (RandomDropout(), RandomMisalignment(spacing=SPACING)):
        seen = scan()
        seen.remove_image("pet")
        after = transform(seen)
        assert set(after.get_images_dict(intensity_only=False)) == {"ct", "label"}
        assert torch.equal(after["ct"].data, whole["ct"].data)
