"""Imported nnU-Net folds against nnUNetPredictor, from HU and SUV to probabilities, in the same process."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from float32_sums import sum_in_float32
from members import Ensemble
from nnunet_results import (
    LARGER,
    RAW,
    SMALLER,
    STAGE,
    assert_same,
    ours,
    plans,
    resenc,
    study,
    theirs,
    train,
)
from spoiled import must_fail

from hnseg.card import Decision
from hnseg.importing.nnunet import import_nnunet
from hnseg.models.bundle import Bundle


@pytest.fixture(autouse=True)
def _nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for its results, and sums in float32."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
    sum_in_float32(monkeypatch)


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
def test_an_imported_fold_predicts_what_nnunet_does(
    tmp_path: Path, plan: dict[str, Any], shape: tuple[int, ...], mirror: bool
) -> None:
    folder, (ct, pet, grid) = train(plan), study(shape)
    import_nnunet(folder, [*RAW, f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    channels = [sitk.GetArrayFromImage(image) for image in (ct, pet)]
    reference = theirs(folder, channels, [0], mirror=mirror)
    assert_same(ours(tmp_path / "bundle", ct, pet, grid, mirror=mirror), reference)


def test_the_recipe_s_scaling_comes_before_nnunet_s_normalisation(tmp_path: Path) -> None:
    unit = {"mean": 0.1, "std": 0.6, "percentile_00_5": -0.8, "percentile_99_5": 0.9}
    folder = train(plans(foreground_intensity_properties_per_channel={"0": unit, "1": unit}))
    ct, pet, grid = study(LARGER)
    import_nnunet(folder, [*STAGE, "recipe=paper", f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    hu, suv = (sitk.GetArrayFromImage(image) for image in (ct, pet))
    scaled = [(hu.clip(-110, 190) + 110) / 150 - 1, (suv - suv.min()) / (suv.max() - suv.min())]
    reference = theirs(folder, scaled, [0], mirror=False)
    assert_same(ours(tmp_path / "bundle", ct, pet, grid, mirror=False), reference)


def test_two_folds_are_nnunet_s_mean_of_logits_under_the_authors_fusion(tmp_path: Path) -> None:
    folder, (ct, pet, grid) = train(folds=[0, 1]), study(LARGER)
    names = import_nnunet(folder, [*RAW, f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    assert names == ["fine_plainconv_fold_0", "fine_plainconv_fold_1"]
    channels = [sitk.GetArrayFromImage(image) for image in (ct, pet)]
    reference, flat = theirs(folder, channels, [0, 1], mirror=False), Decision(fusion="flat")
    members = Bundle.load(tmp_path / "bundle").members
    for decision, fits in ((Decision(fusion="authors"), True), (flat, False)):
        ensemble = Ensemble(members, decision=decision)
        fused = torch.from_numpy(ensemble(ct, pet, grid))
        with nullcontext() if fits else must_fail():
            assert_same(fused, reference)


def change(card: dict[str, Any], *path: str | int, to: Any) -> None:
    """Sets one entry deep in a card."""
    *parents, last = path
    for key in parents:
        card = card[key]
    card[last] = to


SPOILED: dict[str, Callable[[dict[str, Any]], None]] = {
    "a constant of CT": lambda card: change(card, "input", "normalise", 0, "mean", to=50.0),
    "the scheme of PET": lambda card: change(card, "input", "normalise", 1, "scheme", to="rescale"),
    "a mirror axis": lambda card: change(card, "mirror_axes", to=[0, 1]),
    "the overlap": lambda card: change(card, "window", "overlap", to=0.25),
    "the tiling": lambda card: change(card, "window", "tiling", to="monai"),
    "the axes": lambda card: change(card, "axes", "order", to=[0, 2, 1]),
    "their direction": lambda card: change(card, "axes", "flip", to=[2]),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_changed_entry_of_the_card_no_longer_predicts_what_nnunet_does(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    plan = plans(patch_size=[8, 8, 8])
    plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][1] = [2, 2, 2]
    folder, (ct, pet, grid) = train(plan), study(LARGER)
    import_nnunet(folder, [*RAW, f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    reference = theirs(folder, [sitk.GetArrayFromImage(image) for image in (ct, pet)], [0], mirror=True)
    (member,) = Bundle.load(tmp_path / "bundle").members
    ensemble = Ensemble([member], mirror=True)
    assert_same(torch.from_numpy(ensemble(ct, pet, grid)), reference)
    spoil(member.card)
    with must_fail():
        assert_same(torch.from_numpy(ensemble(ct, pet, grid)), reference)


def test_margins_of_zeros_are_shown_where_nnunet_cuts_them_off(tmp_path: Path) -> None:
    """On purpose: a network of hnseg sees and normalises its whole ROI, wherever the ROI leaves the scan.

    nnU-Net crops to the box of what is not zero in some channel. A trace of activity in one corner of the
    volume keeps it from that, and the two agree.
    """
    folder, (ct, pet, grid) = train(), study(LARGER)
    import_nnunet(folder, [*RAW, f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    for image in (ct, pet):
        image[:6, :, :] = 0
    mine = ours(tmp_path / "bundle", ct, pet, grid, mirror=False)
    channels = [sitk.GetArrayFromImage(image) for image in (ct, pet)]
    with must_fail():
        assert_same(mine, theirs(folder, channels, [0], mirror=False))
    channels[1][0, 0, 0] = 1e-6
    assert_same(mine, theirs(folder, channels, [0], mirror=False))
