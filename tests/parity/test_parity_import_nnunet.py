"""Imported nnU-Net folds against nnUNetPredictor, from HU and SUV to probabilities, in the same process."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from float32_sums import sum_in_float32
from members import Ensemble
from nnunet_results import LARGER, RAW, SMALLER, STAGE, assert_same, plans, resenc, study, theirs, train
from spoiled import must_fail
from torch import Tensor

from hnseg.card import Card, Decision, plain
from hnseg.imaging.grid import Grid
from hnseg.importing.nnunet import import_nnunet
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member


@pytest.fixture(autouse=True)
def _nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for its results, and sums in float32."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
    sum_in_float32(monkeypatch)


def imported(folder: Path, grid: Grid, recipe: Sequence[str] = RAW) -> Sequence[Member]:
    """The folds of a results folder as members whose ROI is the grid."""
    import_nnunet(folder, [*recipe, f"stage.size={list(grid.size)}"], folder / "bundle")
    return Bundle.load(folder / "bundle").members


def ours(members: Sequence[Member], ct: sitk.Image, pet: sitk.Image, grid: Grid, **options: Any) -> Tensor:
    """Probabilities (K, z, y, x) from HU and SUV."""
    return torch.from_numpy(Ensemble(members, **options)(ct, pet, grid))


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("shape", [LARGER, SMALLER])
@pytest.mark.parametrize(
    "plan",
    [
        plans(),
        plans(architecture=resenc(), normalization_schemes=["RescaleTo01Normalization", "NoNormalization"]),
        plans(
            transpose_forward=[1, 2, 0],
            transpose_backward=[2, 0, 1],
            spacing=[2.5, 2.0, 3.0],
            patch_size=[8, 12, 8],
        ),
    ],
    ids=["plain", "resenc", "transposed"],
)
def test_an_imported_fold_predicts_what_nnunet_does(plan, shape, mirror):
    folder, (ct, pet, grid) = train(plan), study(shape)
    reference = theirs(folder, (ct, pet), mirror=mirror)
    assert_same(ours(imported(folder, grid), ct, pet, grid, mirror=mirror), reference)


def test_the_recipe_s_scaling_comes_before_nnunet_s_normalisation() -> None:
    unit = {"mean": 0.1, "std": 0.6, "percentile_00_5": -0.8, "percentile_99_5": 0.9}
    folder = train(plans(foreground_intensity_properties_per_channel={"0": unit, "1": unit}))
    ct, pet, grid = study(LARGER)
    hu, suv = (sitk.GetArrayFromImage(image) for image in (ct, pet))
    scaled = [(hu.clip(-110, 190) + 110) / 150 - 1, (suv - suv.min()) / (suv.max() - suv.min())]
    reference = theirs(folder, [grid.image(channel) for channel in scaled])
    assert_same(ours(imported(folder, grid, [*STAGE, "recipe=paper"]), ct, pet, grid), reference)


def test_two_folds_are_nnunet_s_mean_of_logits_under_the_authors_fusion() -> None:
    folder, (ct, pet, grid) = train(folds=[0, 1]), study(LARGER)
    members, reference = imported(folder, grid), theirs(folder, (ct, pet), [0, 1])
    assert [member.card.name for member in members] == ["fine_plainconv_fold_0", "fine_plainconv_fold_1"]
    assert_same(ours(members, ct, pet, grid, decision=Decision(fusion="authors")), reference)
    with must_fail():
        assert_same(ours(members, ct, pet, grid, decision=Decision(fusion="flat")), reference)


SPOILED: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "a constant of CT": (("input", "normalise", 0, "mean"), 50.0),
    "the scheme of PET": (("input", "normalise", 1, "scheme"), "rescale"),
    "a mirror axis": (("mirror_axes",), [0, 1]),
    "the overlap": (("window", "overlap"), 0.25),
    "the tiling": (("window", "tiling"), "monai"),
    "the axes": (("axes", "order"), [0, 2, 1]),
    "their direction": (("axes", "flip"), [2]),
}


@pytest.mark.parametrize(("keys", "value"), SPOILED.values(), ids=SPOILED)
def test_a_changed_entry_of_the_card_no_longer_predicts_what_nnunet_does(keys, value):
    plan = plans(patch_size=[8, 8, 8])
    plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][1] = [2, 2, 2]
    folder, (ct, pet, grid) = train(plan), study(LARGER)
    reference, (member,) = theirs(folder, (ct, pet), mirror=True), imported(folder, grid)
    assert_same(ours([member], ct, pet, grid, mirror=True), reference)
    *parents, last = keys
    described = entry = plain(member.card)
    for key in parents:
        entry = entry[key]
    entry[last] = value
    member = replace(member, card=Card(**described))
    with must_fail():
        assert_same(ours([member], ct, pet, grid, mirror=True), reference)


def test_margins_of_zeros_are_shown_where_nnunet_cuts_them_off() -> None:
    """On purpose: a network of hnseg sees and normalises its whole ROI, wherever the ROI leaves the scan.

    nnU-Net crops to the box of what is not zero in some channel. A trace of activity in one corner of the
    volume keeps it from that, and the two agree.
    """
    folder, (ct, pet, grid) = train(), study(LARGER)
    for image in (ct, pet):
        image[:6, :, :] = 0
    mine = ours(imported(folder, grid), ct, pet, grid)
    with must_fail():
        assert_same(mine, theirs(folder, (ct, pet)))
    pet[0, 0, 0] = 1e-6
    assert_same(mine, theirs(folder, (ct, pet)))
