"""The input chain by hand-worked numbers and nnU-Net's formula; training and inference see the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchio as tio
from fabricate import ct_image, pet_image
from members import Ensemble, card

from hnseg.card import Card, InputSpec, Normalise, Sampling, plain
from hnseg.data.dataset import VolumeDataset
from hnseg.data.intensity import input_transform, network_input, to_subject
from hnseg.data.prepare import prepare_case
from hnseg.data.resample import AIR_HU
from hnseg.imaging.grid import Grid
from hnseg.imaging.placement import place_grid
from hnseg.inference.backends import Networks
from hnseg.models.bundle import Member

RAW = InputSpec()
ZSCORED = InputSpec(normalise=(Normalise("zscore"),) * 2)
ENHANCED = InputSpec(cte=True, normalise=(Normalise("zscore"),) * 4)


def channels(values: list[float], dtype: type = np.float32) -> torch.Tensor:
    """One row of voxels (1, 1, 1, n)."""
    return torch.from_numpy(np.array(values, dtype)).reshape(1, 1, 1, -1)


def subject(ct: list[float], pet: list[float]) -> tio.Subject:
    label = tio.LabelMap(tensor=torch.ones((1, 1, 1, len(ct)), dtype=torch.uint8))
    images = {"ct": tio.ScalarImage(tensor=channels(ct)), "pet": tio.ScalarImage(tensor=channels(pet))}
    return tio.Subject(**images, label=label)


def made(spec: InputSpec, ct: list[float], pet: list[float]) -> np.ndarray:
    """What the chain makes of a row of voxels, (C, n)."""
    return input_transform(spec)(subject(ct, pet))["image"].data[:, 0, 0].numpy()


def volumes(shape: tuple[int, int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "ct": torch.from_numpy(rng.uniform(-1000, 1000, shape).astype(np.float32))[None],
        "pet": torch.from_numpy(rng.gamma(1, 3, shape).astype(np.float32))[None],
    }


def shown(spec: InputSpec, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a network is shown of volumes (1, z, y, x): (C, z, y, x)."""
    subject = to_subject({name: data[name][0] for name in spec.modalities})
    return network_input(spec, input_transform(spec)(subject))


def test_the_window_clips_and_scales():
    # The paper's window: -110 → -1, 40 → 0, 115 → 0.5, 190 → 1, and clipped beyond.
    hu = [AIR_HU, -110, 40, 115, 190, 3000]
    np.testing.assert_allclose(made(RAW, hu, [0] * 5 + [1])[0], [-1, -1, 0, 0.5, 1, 1], atol=1e-6)


def test_enhancement_takes_the_powers_on_the_unit_interval():
    # Unit values 0, 1/8, 1/2, 1: squares 0, 1/64, 1/4, 1; cube roots 0, 1/2, 0.793701, 1; then 2x - 1.
    hu = [-110, -72.5, 40, 190]
    x, square, root, pet = made(InputSpec(cte=True), hu, [0, 1, 2, 4])
    np.testing.assert_allclose(x, [-1, -0.75, 0, 1], atol=1e-6)
    np.testing.assert_allclose(square, [-1, -0.96875, -0.5, 1], atol=1e-6)
    np.testing.assert_allclose(root, [-1, 0, 0.587401, 1], atol=1e-6)
    np.testing.assert_allclose(pet, [0, 0.25, 0.5, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("powers", "names", "ct", "pet"),
    [
        ({"ct_powers": ("square",)}, "CT, CT², PET", [[-0.75], [-0.96875]], [[0.25]]),
        ({"ct_powers": ("cube_root",)}, "CT, CT^(1/3), PET", [[-0.75], [0]], [[0.25]]),
        (
            {"ct_powers": (), "pet_powers": ("square", "cube_root")},
            "CT, PET, PET², PET^(1/3)",
            [[-0.75]],
            [[0.25], [0.0625], [0.629961]],
        ),
    ],
)
def test_the_powers_are_chosen_for_each_modality(
    powers: dict[str, tuple[str, ...]], names: str, ct: list[list[float]], pet: list[list[float]]
) -> None:
    # CT of -72.5 HU is 1/8 of the window, PET of 1 SUV a quarter of the crop's range.
    spec = InputSpec(cte=True, **powers)  # type: ignore[arg-type]
    assert ", ".join(spec.channel_names) == names
    shown = made(spec, [-110, -72.5, 40, 190], [0, 1, 2, 4])
    np.testing.assert_allclose(shown[:, 1:2], [*ct, *pet], atol=1e-6)
    assert replace(spec, cte=False, normalise=()).channel_names == ["CT", "PET"]


def test_pet_is_scaled_by_its_own_range_or_by_a_fixed_suv():
    np.testing.assert_allclose(made(RAW, [0] * 4, [2, 4, 7, 12])[1], [0, 0.2, 0.5, 1], atol=1e-6)
    suv = replace(RAW, pet="suv", pet_upper=20.0)
    np.testing.assert_allclose(made(suv, [0] * 4, [0, 5, 20, 90])[1], [0, 0.25, 1, 1], atol=1e-6)
    # Undershoot of the B-spline is no activity, and no reason to shift the scale.
    np.testing.assert_allclose(made(RAW, [0] * 3, [-1, 0, 10])[1], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(made(suv, [0] * 3, [-1, 0, 10])[1], [0, 0, 0.5], atol=1e-6)
    assert made(RAW, [0] * 3, [3, 3, 3])[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(10, 10, 10), (9, 10, 11), (12, 7, 16)])
def test_padding_is_zero_in_the_image_and_background_in_the_label(shape):
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(1, 3, shape).astype(np.uint8))[None]
    images = {name: tio.ScalarImage(tensor=data) for name, data in volumes(shape).items()}
    spec = replace(ZSCORED, pad_to=(16, 16, 16))
    padded = input_transform(spec)(tio.Subject(**images, label=tio.LabelMap(tensor=label)))
    bare = input_transform(replace(spec, pad_to=None))(tio.Subject(**images))
    image, truth = padded["image"].data, padded["label"].data
    assert image.shape == (2, 16, 16, 16)
    # Normalised first, padded afterwards: what is not padding is untouched, what is padding is 0.
    front = [(16 - n + 1) // 2 for n in shape]  # the odd voxel stands in front
    inside = (slice(None), *(slice(a, a + n) for a, n in zip(front, shape, strict=True)))
    torch.testing.assert_close(image[inside], bare["image"].data)
    torch.testing.assert_close(truth[inside], label)
    assert image.abs().sum().item() == pytest.approx(bare["image"].data.abs().sum().item(), rel=1e-5)
    assert int((truth > 0).sum()) == label.numel()


@pytest.mark.parametrize("pad_to", [None, (24, 32, 32)])
@pytest.mark.parametrize("antialias", [False, True])
def test_inference_feeds_the_network_what_training_fed_it(cohort, tmp_path, pad_to, antialias):
    case = cohort[0]
    fields = {"size": [20, 21, 19], "spacing": [3.0, 3.0, 3.5], "placement": "scan", "antialias": antialias}
    spec = replace(ENHANCED, pad_to=pad_to)
    described = Card(**card("fine", "plainconv", grid=fields, input=plain(spec)))
    member = Member(described, tmp_path / "none")
    trained = VolumeDataset([prepare_case(case, member.stage, tmp_path, margin_mm=7)], spec, 2)[0]["image"]
    seen: list[torch.Tensor] = []

    class Watched(Networks):
        def __call__(self, member):
            return lambda image: (seen.append(image[0]), torch.zeros((1, 3, *image.shape[2:])))[1]

    ct, pet = ct_image(), pet_image()
    grid: Grid = place_grid(member.stage, ct)
    ensemble = Ensemble([member], networks=Watched(torch.device("cpu"), "float32"))
    found = ensemble(ct, pet, grid)
    assert found.shape == (3, *grid.shape)
    torch.testing.assert_close(seen[0], trained, rtol=1e-4, atol=1e-4)


def test_the_authors_scaling_by_hand():
    # Min-max once more over the ROI: CT 0.2..0.6 → 0, 1/4, 1; PET 0..0.2 → 0, 1/2, 1; powers follow.
    spec = InputSpec(sampling=Sampling("head_crop"), ct_window=None, pet="raw", roi_minmax=True, cte=True)
    x, square, root, pet = made(spec, [0.2, 0.3, 0.6], [0, 0.1, 0.2])
    np.testing.assert_allclose(x, [0, 0.25, 1], atol=1e-6)
    np.testing.assert_allclose(square, [0, 0.0625, 1], atol=1e-6)
    np.testing.assert_allclose(root, [0, 0.25 ** (1 / 3), 1], atol=1e-6)
    np.testing.assert_allclose(pet, [0, 0.5, 1], atol=1e-6)
    # The coarse stage leaves the crop's values as they are, -1 outside it.
    coarse = InputSpec(sampling=Sampling("head_crop"), ct_window=None, pet="raw")
    np.testing.assert_allclose(made(coarse, [-1, 0.3, 0.6], [0, 0.1, 0.2]), [[-1, 0.3, 0.6], [0, 0.1, 0.2]])
