"""Results folders of nnU-Net's own trainer, without training; its predictor and ours beside each other."""

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from hnseg.imaging.grid import Grid

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
    node = plain()
    node["network_class_name"] = node["network_class_name"].replace("PlainConv", "ResidualEncoder")
    node["arch_kwargs"]["n_blocks_per_stage"] = node["arch_kwargs"].pop("n_conv_per_stage")
    return node


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
    plan = {
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
        (plan if key in plan else configuration)[key] = value
    return plan


def dataset(**changes: Any) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "GTVp": 1, "GTVn": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    } | changes


def train(
    plan: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    folds: Sequence[int | str] = (0,),
) -> Path:
    """The folder of a configuration whose folds hold seeded weights; $nnUNet_results says where."""
    plan, data = plan or plans(), data or dataset()
    for fold in folds:
        torch.manual_seed([*folds].index(fold))
        trainer = nnUNetTrainer(deepcopy(plan) | {"continue_training": False}, "3d_fullres", fold, data, CPU)
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


def sharpen(network: torch.nn.Module, factor: float = 60) -> None:
    """Scales the last layers: a flat softmax would agree with anything."""
    for name, weights in network.state_dict().items():
        if "seg_layers" in name:
            weights.mul_(factor)


def study(shape: Sequence[int]) -> tuple[sitk.Image, sitk.Image, Grid]:
    """CT in whole HU and PET in SUV on the stage's own grid, so that nothing has to be resampled."""
    rng = np.random.default_rng(0)
    hu = np.rint(rng.normal(40, 250, shape)).astype(np.float32)
    suv = rng.gamma(2, 2, shape).astype(np.float32)
    z, y, x = shape
    grid = Grid((x, y, z), SPACING, (0.0, 0.0, 0.0))
    return grid.image(hu), grid.image(suv), grid


def theirs(
    folder: Path, images: Sequence[sitk.Image], folds: Sequence[int] = (0,), *, mirror: bool = False
) -> torch.Tensor:
    """nnU-Net's own probabilities (K, z, y, x), its preprocessing included."""
    predictor = nnUNetPredictor(use_mirroring=mirror, device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), tuple(folds))
    channels = np.stack([sitk.GetArrayFromImage(image) for image in images]).astype(np.float32)
    spacing = {"spacing": list(images[0].GetSpacing()[::-1])}
    _, probabilities = predictor.predict_single_npy_array(channels, spacing, None, None, True)
    return torch.from_numpy(np.asarray(probabilities))


def assert_same(mine: torch.Tensor, reference: torch.Tensor) -> None:
    assert reference.amax(0).mean() > 0.9
    torch.testing.assert_close(mine, reference, rtol=0, atol=1e-3)
