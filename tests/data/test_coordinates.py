"""Positions as channels: right in patient space, carried by what moves the anatomy, the same at inference."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from members import Ensemble, card, make_bundle
from mixes import mix
from spoiled import must_fail
from volumes import lesions, write_volume

from hnseg.card import InputSpec
from hnseg.data.augment import Compose
from hnseg.data.dataset import PatchDataset, VolumeDataset
from hnseg.data.intensity import input_transform, network_input, to_subject
from hnseg.imaging.grid import Grid
from hnseg.inference.backends import Networks

SHAPE = (12, 16, 20)


def shown(spec: InputSpec, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """What the network is shown of an empty ROI, (C, z, y, x)."""
    empty = to_subject({name: torch.zeros(shape) for name in ("ct", "pet")})
    return network_input(spec, input_transform(spec)(empty))


def test_they_are_patient_space_in_units_of_half_the_roi() -> None:
    """By SimpleITK: the physical point of a voxel, between the faces of the grid."""
    grid = Grid.centred((5.0, -7.0, 11.0), SHAPE[::-1], (1.0, 2.0, 3.0))
    image = grid.image(np.zeros(SHAPE, np.uint8))
    half = np.array(image.GetSize()) * image.GetSpacing() / 2
    found = shown(InputSpec(coordinates=True))
    assert found.shape[0] == 5
    for index in [(0, 0, 0), (19, 0, 0), (3, 14, 2), (19, 15, 11)]:
        point = np.array(image.TransformIndexToPhysicalPoint(index))
        expected = (point - (5.0, -7.0, 11.0)) / half  # x, y, z
        np.testing.assert_allclose(found[2:, *index[::-1]], expected, atol=1e-6)


def positioned(folder: Path, axis: int, shape: tuple[int, int, int] = SHAPE):
    """An entry whose CT rises along one of (z, y, x) from -1000 to 1000 HU between the faces of the ROI.

    Its PET is 20 SUV throughout: what is less was mixed with what lies outside.
    """
    volume = write_volume(folder, f"axis_{axis}", lesions(shape, 0))
    ramp = 2000 * (np.arange(shape[axis]) + 0.5) / shape[axis] - 1000
    ct = np.broadcast_to(np.expand_dims(ramp, [one for one in range(3) if one != axis]), shape)
    np.save(volume.folder / "ct.npy", ct.astype(np.float32))
    np.save(volume.folder / "pet.npy", np.full(shape, 20, np.float32))
    return volume


def spatial(name: str) -> Compose:
    """The geometric part of a mix, which always acts."""
    transforms = mix(name).transforms
    moving = {key: transforms[key] for key in ("affine", "mirror")}
    moving["affine"].p = moving["affine"].p_rotation = moving["affine"].p_scaling = 1.0
    return Compose(moving)


@pytest.mark.parametrize("name", ["nnunet", "auto3dseg", "light", "turned"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_they_go_wherever_the_anatomy_goes(tmp_path: Path, name: str, axis: int) -> None:
    spec = InputSpec(ct_window=(-1000, 1000), pet="suv", coordinates=True)
    patch = (8, 16, 12) if name == "nnunet" else SHAPE  # the others know nothing around a patch
    data = PatchDataset([positioned(tmp_path, axis)], spec, patch, 2, spatial(name), 0)
    compared = 0
    for number in range(12):
        image = data[number]["image"]
        ct, position = image[0], image[2 + 2 - axis]
        inside = (image[1] > 1 - 1e-6) & (image[2:].abs() < 0.8).all(0)  # the CT value is its own position
        compared += int(inside.sum())
        torch.testing.assert_close(position[inside], ct[inside], atol=1e-4, rtol=0)
    assert compared > 2000
    unmoved = PatchDataset(data.volumes, spec, patch, 2, None, 0)[0]["image"]
    with must_fail():  # a position that stood still would be seen
        torch.testing.assert_close(unmoved[2 + 2 - axis][inside], ct[inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize("patch", [[24, 24, 24], [16, 24, 16], [32, 24, 24]])
def test_inference_feeds_the_network_what_validation_feeds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: list[int]
) -> None:
    """Whole and in windows: a window of the ROI holds the ROI's coordinates, and so does its padding."""
    shape = (24, 24, 24)
    pad_to = patch if patch[0] > 24 else None
    settings = {"coordinates": True, "pad_to": pad_to, "normalise": [{"scheme": "none"}] * 2}
    described = card("fine", "plainconv", input=settings, patch=patch)
    described["network"]["in_channels"] = 5
    (member,) = make_bundle(tmp_path, described).members
    volume = write_volume(tmp_path / "cache", "A-0", lesions(shape, 0))
    spec = member.card.input
    validated = VolumeDataset([volume], spec, 2)[0]["image"]
    seen: list[torch.Tensor] = []

    class Watched(Networks):
        def __call__(self, member):  # type: ignore[no-untyped-def]
            network = super().__call__(member)
            return lambda image: (seen.append(image), network(image))[1]

    ct, pet = (sitk.GetImageFromArray(np.asarray(volume.load(name), np.float32)) for name in ("ct", "pet"))
    grid = Grid.centred((11.5, 11.5, 11.5), shape, (1.0, 1.0, 1.0))
    ensemble = Ensemble([member], networks=Watched(torch.device("cpu"), "float32"))
    ensemble(ct, pet, grid)
    windows = [validated[:, z : z + patch[0], :, x : x + patch[2]] for z in (0, 8) for x in (0, 8)]
    windows = windows if patch[0] < 24 else [validated]
    starts = {tuple(window[2:, 0, 0, 0].tolist()): window for window in windows}
    assert {tuple(one[0, 2:, 0, 0, 0].tolist()) for one in seen} >= set(starts)
    for image in seen:
        torch.testing.assert_close(image[0, 2:], starts[tuple(image[0, 2:, 0, 0, 0].tolist())][2:])
