"""nnU-Net's networks in hnseg: what nnUNetPredictor predicts with them, and what is refused."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from float32_sums import sum_in_float32
from members import card, write_run
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from spoiled import must_fail

from hnseg.cli import main
from hnseg.errors import HnsegError
from hnseg.geometry import Grid
from hnseg.importing.nnunet import import_nnunet
from hnseg.inference.decision import Decision
from hnseg.inference.ensemble import StageEnsemble
from hnseg.models.bundle import Bundle, export_bundle

CPU = torch.device("cpu")
SPACING = (2.0, 2.5, 3.0)  # (x, y, z)
STAGE = ["stage=fine", "stage.spacing=[2,2.5,3]", "cte=false"]
RAW = [*STAGE, "recipe=paper", "recipe.pet=raw", "recipe.ct_window=null"]
CT = {"mean": 40.0, "std": 200.0, "percentile_00_5": -300.0, "percentile_99_5": 500.0}
# (z, y, x): larger than the patch along every axis, smaller along two by odd numbers.
LARGER, SMALLER = (15, 19, 21), (7, 12, 9)


def plain(**changes: Any) -> dict[str, Any]:
    """The architecture of nnU-Net's default planner, small."""
    settings = {
        "n_stages": 3,
        "features_per_stage": [8, 8, 16],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 1, 2],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": settings | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def resenc() -> dict[str, Any]:
    """The same with the residual encoder of the paper's fine stage."""
    told = plain()
    told["network_class_name"] = told["network_class_name"].replace("PlainConv", "ResidualEncoder")
    told["arch_kwargs"]["n_blocks_per_stage"] = told["arch_kwargs"].pop("n_conv_per_stage")
    return told


def plans(**changes: Any) -> dict[str, Any]:
    """A plan of two channels; `changes` go to its configuration, or to the plan where it has the key."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 8, 12],
        "spacing": list(SPACING[::-1]),
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
        "architecture": plain(),
        "batch_dice": False,
    }
    told = {
        "dataset_name": "Dataset501_Fine",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": CT, "1": CT},
        "configurations": {"3d_fullres": configuration},
    }
    for key, value in changes.items():
        (told if key in told else configuration)[key] = value
    return told


def dataset(**changes: Any) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "GTVp": 1, "GTVn": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    } | changes


Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train(plans, dataset, folds)`: a results folder of nnU-Net's own trainer, weights untrained."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / f"nnUNet_{name}"))

    def results(
        plan: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        folds: Sequence[int | str] = (0,),
    ) -> Path:
        plan, data = plan or plans(), data or dataset()
        for fold in folds:
            torch.manual_seed(hash(fold) % 1000)
            trainer = nnUNetTrainer(
                deepcopy(plan) | {"continue_training": False}, "3d_fullres", fold, data, CPU
            )
            trainer.network = trainer.build_network_architecture(
                trainer.plans_manager,
                trainer.configuration_manager,
                len(data.get("channel_names", {})),
                trainer.label_manager.num_segmentation_heads,
                enable_deep_supervision=True,
            )
            sharpen(trainer.network)
            trainer.optimizer, _ = trainer.configure_optimizers()
            # What it logs are NumPy's numbers.
            trainer.logger.log("train_losses", np.mean(np.float32([1, 2])), 0)
            trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
            trainer.logger.log("dice_per_class_or_region", [np.float64(0.5), np.nan], 0)
            Path(trainer.output_folder).mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        folder = Path(trainer.output_folder_base)
        (folder / "plans.json").write_text(json.dumps(plan))
        (folder / "dataset.json").write_text(json.dumps(data))
        return folder

    return results


def sharpen(network: torch.nn.Module, factor: float = 60) -> None:
    """Scales the last layers: a flat softmax would agree with anything."""
    for name, weights in network.state_dict().items():
        if "seg_layers" in name:
            weights.mul_(factor)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    sum_in_float32(monkeypatch)


def study(shape: Sequence[int]) -> tuple[sitk.Image, sitk.Image, Grid]:
    """CT in whole HU and PET in SUV on the stage's own grid, so that nothing has to be resampled."""
    rng = np.random.default_rng(0)
    hu = np.rint(rng.normal(40, 250, shape)).astype(np.float32)
    suv = rng.gamma(2, 2, shape).astype(np.float32)
    images = []
    for array in (hu, suv):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING)
        images.append(image)
    x, y, z = images[0].GetSize()
    return images[0], images[1], Grid((x, y, z), SPACING, (0.0, 0.0, 0.0))


def theirs(
    folder: Path, channels: Sequence[np.ndarray], folds: Sequence[int], *, mirror: bool
) -> torch.Tensor:
    """nnU-Net's own probabilities (K, z, y, x), its preprocessing included."""
    predictor = nnUNetPredictor(use_mirroring=mirror, device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), tuple(folds))
    _, probabilities = predictor.predict_single_npy_array(
        np.stack(channels).astype(np.float32), {"spacing": list(SPACING[::-1])}, None, None, True
    )
    return torch.from_numpy(np.asarray(probabilities))


def ours(bundle: Path, ct: sitk.Image, pet: sitk.Image, grid: Grid, *, mirror: bool) -> torch.Tensor:
    """hnseg's probabilities (K, z, y, x), from HU and SUV."""
    ensemble = StageEnsemble(Bundle.load(bundle).members, CPU, "float32", mirror=mirror)
    return torch.from_numpy(ensemble.probabilities(ct, pet, grid))


def assert_same(mine: torch.Tensor, reference: torch.Tensor) -> None:
    assert reference.amax(0).mean() > 0.9
    torch.testing.assert_close(mine, reference, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("float32")
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
    train: Train, tmp_path: Path, plan: dict[str, Any], shape: tuple[int, ...], mirror: bool
) -> None:
    folder, (ct, pet, grid) = train(plan), study(shape)
    import_nnunet(folder, [*RAW, f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    channels = [sitk.GetArrayFromImage(image) for image in (ct, pet)]
    reference = theirs(folder, channels, [0], mirror=mirror)
    assert_same(ours(tmp_path / "bundle", ct, pet, grid, mirror=mirror), reference)


@pytest.mark.usefixtures("float32")
def test_the_recipe_s_scaling_comes_before_nnunet_s_normalisation(train: Train, tmp_path: Path) -> None:
    unit = {"mean": 0.1, "std": 0.6, "percentile_00_5": -0.8, "percentile_99_5": 0.9}
    folder = train(plans(foreground_intensity_properties_per_channel={"0": unit, "1": unit}))
    ct, pet, grid = study(LARGER)
    import_nnunet(folder, [*STAGE, "recipe=paper", f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    hu, suv = (sitk.GetArrayFromImage(image) for image in (ct, pet))
    scaled = [(hu.clip(-110, 190) + 110) / 150 - 1, (suv - suv.min()) / (suv.max() - suv.min())]
    reference = theirs(folder, scaled, [0], mirror=False)
    assert_same(ours(tmp_path / "bundle", ct, pet, grid, mirror=False), reference)


@pytest.mark.usefixtures("float32")
def test_two_folds_are_nnunet_s_mean_of_logits_under_the_authors_fusion(train: Train, tmp_path: Path) -> None:
    folder, (ct, pet, grid) = train(folds=[0, 1]), study(LARGER)
    names = import_nnunet(folder, [*RAW, f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    assert names == ["fine_plainconv_fold_0", "fine_plainconv_fold_1"]
    channels = [sitk.GetArrayFromImage(image) for image in (ct, pet)]
    reference, flat = theirs(folder, channels, [0, 1], mirror=False), Decision(fusion="flat")
    members = Bundle.load(tmp_path / "bundle").members
    for decision, fits in ((Decision(fusion="authors"), True), (flat, False)):
        ensemble = StageEnsemble(members, CPU, "float32", decision=decision)
        fused = torch.from_numpy(ensemble.probabilities(ct, pet, grid))
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


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_changed_entry_of_the_card_no_longer_predicts_what_nnunet_does(
    train: Train, tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    told = plans(patch_size=[8, 8, 8])
    told["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][1] = [2, 2, 2]
    folder, (ct, pet, grid) = train(told), study(LARGER)
    import_nnunet(folder, [*RAW, f"stage.size={list(grid.size)}"], tmp_path / "bundle")
    reference = theirs(folder, [sitk.GetArrayFromImage(image) for image in (ct, pet)], [0], mirror=True)
    (member,) = Bundle.load(tmp_path / "bundle").members
    ensemble = StageEnsemble([member], CPU, "float32", mirror=True)
    assert_same(torch.from_numpy(ensemble.probabilities(ct, pet, grid)), reference)
    spoil(member.card)
    with must_fail():
        assert_same(torch.from_numpy(ensemble.probabilities(ct, pet, grid)), reference)


def test_a_member_says_where_it_comes_from_and_which_cases_it_has_seen(train: Train, tmp_path: Path) -> None:
    folder = train(folds=[0, 1, "all"])
    splits = [{"train": ["b", "a"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    import_nnunet(folder, RAW, tmp_path / "bundle")
    members = {member.card["fold"]: member for member in Bundle.load(tmp_path / "bundle").members}
    assert {fold: member.card["trained_on"] for fold, member in members.items()} == {
        0: ["a", "b"],
        1: ["a", "c"],
        "all": ["a", "b", "c"],
    }
    told = members[1].card["imported"]
    checkpoint = folder / told["checkpoint"]
    assert told["checkpoint"] == "fold_1/checkpoint_final.pth"
    assert told["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert told["trainer"] == "nnUNetTrainer"
    assert str(tmp_path) not in (tmp_path / "bundle" / "fine_plainconv_fold_1" / "member.yaml").read_text()


def test_a_member_of_an_unknown_split_counts_as_having_seen_every_case(train: Train, tmp_path: Path) -> None:
    import_nnunet(train(), RAW, tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    assert member.card["trained_on"] is None
    assert member.has_seen("anything")


def test_a_bundle_is_extended_by_new_names_alone(train: Train, tmp_path: Path) -> None:
    folder, out = train(folds=[0, 1]), tmp_path / "bundle"
    assert import_nnunet(folder, RAW, out, folds=["1"]) == ["fine_plainconv_fold_1"]
    assert import_nnunet(folder, RAW, out, folds=["0"]) == ["fine_plainconv_fold_0"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(HnsegError, match="second member fine_plainconv_fold_1"):
        import_nnunet(folder, RAW, out, folds=["1"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [member.card["fold"] for member in Bundle.load(out).members] == [1, 0]
    assert import_nnunet(folder, [*RAW, "arm=other"], out, folds=["1"]) == ["other_fold_1"]


def test_imported_members_and_trained_runs_gather_into_one_bundle(train: Train, tmp_path: Path) -> None:
    import_nnunet(train(), RAW, tmp_path / "imported")
    write_run(tmp_path / "runs", card("coarse", "segresnet"))
    names = export_bundle([tmp_path / "imported", tmp_path / "runs"], tmp_path / "bundle")
    assert names == ["fine_plainconv_fold_0", "coarse_segresnet_fold_0"]
    kept, new = (Bundle.load(tmp_path / one).of_stage("fine")[0] for one in ("imported", "bundle"))
    assert kept.card == new.card
    weights = [member.loaded()[1].state_dict() for member in (kept, new)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


def test_plans_of_older_nnunets_are_read(train: Train, tmp_path: Path) -> None:
    told = plans()
    configuration = told["configurations"]["3d_fullres"]
    del configuration["architecture"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 8,
        "unet_max_num_features": 16,
        "n_conv_per_stage_encoder": [2, 2, 1],
        "n_conv_per_stage_decoder": [2, 1],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    }
    import_nnunet(train(told), RAW, tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    assert member.card["network"]["features"] == [8, 16, 16]


def test_a_configuration_inherits_as_in_nnunet(train: Train, tmp_path: Path) -> None:
    told = plans()
    known = told["configurations"]
    known["base"] = known.pop("3d_fullres")
    known["3d_fullres"] = {"inherits_from": "base", "patch_size": [8, 12, 8]}
    import_nnunet(train(told), RAW, tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    assert member.card["patch"] == [8, 12, 8]


def unet(**changes: Any) -> dict[str, Any]:
    return {"architecture": plain(**changes)}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], str]] = {
    "mask": ({"use_mask_for_norm": [False, True]}, {}, RAW, "use_mask_for_norm"),
    "scheme": ({"normalization_schemes": ["RGBTo01Normalization"] * 2}, {}, RAW, "RGBTo01Normalization"),
    "spacing": ({"spacing": [1.0, 1.0, 1.0]}, {}, RAW, r"\[1\.0, 1\.0, 1\.0\].*\[3.*2\.5, 2.*stage\.spacing"),
    "reader": ({"image_reader_writer": "Tiff3DIO"}, {}, RAW, "Tiff3DIO"),
    "preprocessor": ({"preprocessor_name": "MyPreprocessor"}, {}, RAW, "MyPreprocessor"),
    "cascade": ({"previous_stage": "3d_lowres"}, {}, RAW, "previous_stage=3d_lowres"),
    "nonlinearity": (unet(nonlin="torch.nn.ReLU"), {}, RAW, r"nonlin=torch\.nn\.ReLU"),
    "bias": (unet(conv_bias=False), {}, RAW, "conv_bias=False"),
    "regions": (
        {},
        {"labels": {"background": 0, "both": [1, 2], "GTVn": 2}, "regions_class_order": [1, 2]},
        RAW,
        "regions",
    ),
    "ignore": ({}, {"labels": {"background": 0, "GTVp": 1, "GTVn": 2, "ignore": 3}}, RAW, "ignore label"),
    "order": ({}, {"labels": {"background": 0, "GTVn": 1, "GTVp": 2}}, RAW, "GTVn=1.*GTVp=1, GTVn=2"),
    "classes": ({}, {"labels": {"background": 0, "head": 1}}, RAW, "stage=fine has GTVp=1, GTVn=2"),
    "enhanced": ({}, {}, [*RAW, "cte=true", "recipe.ct_window=[-110,190]"], "2 channels.*give cte=false"),
    "channels": ({}, {"channel_names": {"0": "PET", "1": "CT"}}, RAW, "CT first and PET last"),
    "model": ({}, {}, [*RAW, "model=segresnet"], "model=segresnet.*leave it out"),
}


@pytest.mark.parametrize(("plan", "data", "overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_run_otherwise_is_refused(
    train: Train,
    tmp_path: Path,
    plan: dict[str, Any],
    data: dict[str, Any],
    overrides: list[str],
    message: str,
) -> None:
    folder = train()
    (folder / "plans.json").write_text(json.dumps(plans(**plan)))
    (folder / "dataset.json").write_text(json.dumps(dataset(**data)))
    with pytest.raises(HnsegError, match=message) as refused:
        import_nnunet(folder, overrides, tmp_path / "bundle")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


def test_another_architecture_is_refused_by_its_name(train: Train, tmp_path: Path) -> None:
    folder, other = train(), plain()
    other["network_class_name"] = "dynamic_network_architectures.architectures.primus.PrimusS"
    (folder / "plans.json").write_text(json.dumps(plans(architecture=other)))
    with pytest.raises(HnsegError, match="PrimusS is none of hnseg's"):
        import_nnunet(folder, RAW, tmp_path / "bundle")


def test_weights_of_another_plan_are_refused(train: Train, tmp_path: Path) -> None:
    folder = train()
    (folder / "plans.json").write_text(json.dumps(plans(**unet(features_per_stage=[8, 8, 8]))))
    with pytest.raises(HnsegError, match=r"checkpoint_final\.pth: not the network of .*plans\.json"):
        import_nnunet(folder, RAW, tmp_path / "bundle")


class Hostile:
    """Pickled, it asks for a file to be made when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(train: Train, tmp_path: Path, zipped: bool) -> None:
    folder, trace = train(), tmp_path / "trace"
    path = folder / "fold_0" / "checkpoint_final.pth"
    stored = torch.load(path, weights_only=False)
    torch.save(stored | {"logging": Hostile(trace)}, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert trace.exists()  # an unguarded reader would have run it
    trace.unlink()
    with pytest.raises(HnsegError, match=r"checkpoint_final\.pth: holds [\w.]+, which could run code"):
        import_nnunet(folder, RAW, tmp_path / "bundle")
    assert not trace.exists()
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_checkpoint_is_told_in_a_line(train: Train, tmp_path: Path) -> None:
    folder = train()
    path = folder / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(HnsegError, match=r"checkpoint_final\.pth: cannot be read") as refused:
            import_nnunet(folder, RAW, tmp_path / "bundle")
        assert len(str(refused.value).splitlines()) == 1
    torch.save({"weights": {}}, path)
    with pytest.raises(HnsegError, match="not as nnU-Net v2 writes them"):
        import_nnunet(folder, RAW, tmp_path / "bundle")


def test_the_command_makes_a_bundle_or_says_what_is_missing(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hnseg(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["hnseg", "import-nnunet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0)

    folder, out = train(folds=[0, 1]), tmp_path / "bundle"
    capsys.readouterr()
    assert hnseg(folder, *RAW, "--out", out, "--folds", "1") == 0
    assert capsys.readouterr().out == f"{out}: fine_plainconv_fold_1\n"
    for arguments, told in (
        ((folder, *RAW, "--folds", "0,4"), "fold_4"),
        ((folder, *RAW, "--checkpoint", "best"), "checkpoint_best.pth"),
        ((folder.parent, *RAW), "plans.json"),
        ((folder, "stage=finne"), "finne"),
    ):
        assert hnseg(*arguments, "--out", out) == 2
        captured = capsys.readouterr()
        assert told in captured.err
        assert len(captured.err.splitlines()) == 1
