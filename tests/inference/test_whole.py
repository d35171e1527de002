"""windows=whole: an ROI larger than the patch that members were trained on, shown in one piece."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fabricate import ct_image, pet_image
from members import Ensemble, card, make_bundle
from torch.nn import functional as F

from hnseg.card import STUDY
from hnseg.data.resample import sample_images
from hnseg.imaging.grid import Grid

GRID = {"size": [22, 20, 18], "spacing": [3.0, 3.0, 3.0]}  # (x, y, z); the networks take multiples of 4


@pytest.mark.parametrize("architecture", ["plainconv", "segresnet"])
def test_a_whole_roi_is_the_networks_own_output_for_it(tmp_path: Path, architecture: str) -> None:
    bundle = make_bundle(tmp_path, card("fine", architecture, grid=GRID, patch=[12, 12, 12]))
    (member,) = bundle.whole().members
    assert member.card.patch == (20, 20, 24)  # (z, y, x), rounded up
    grid = Grid.centred((40.0, 40.0, 45.0), GRID["size"], GRID["spacing"])
    ct, pet = ct_image(), pet_image()
    found = Ensemble([member])(ct, pet, grid)
    windowed = Ensemble(bundle.members)(ct, pet, grid)
    # By hand: HU and SUV to [-1, 1] as the card says, zeros around, one pass, the zeros taken off.
    images = torch.from_numpy(np.stack(_scaled(ct, pet, grid)))[None].float()
    network = member.loaded()[1].eval()
    with torch.no_grad():
        logits = network(F.pad(images, (1, 1, 0, 0, 1, 1)))[..., 1:-1, :, 1:-1]
    np.testing.assert_allclose(found, logits.softmax(1)[0].numpy(), atol=1e-5)
    assert np.abs(found - windowed).max() > 1e-3


def _scaled(ct: sitk.Image, pet: sitk.Image, grid: Grid) -> list[np.ndarray]:
    images = sample_images(STUDY, ct, pet, grid)
    return [np.clip(images["ct"], -200, 200) / 200, np.clip(images["pet"], 0, 20) / 20]
