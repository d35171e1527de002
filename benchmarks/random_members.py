"""The ensemble of the paper with random weights, as nnU-Net and Auto3DSeg leave their trainings.

    NNUNET_RESULTS/Dataset00K_STAGE/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_K/checkpoint_final.pth
    AUTO3DSEG/segresnet_K/model/model.pt

Every network finds the first class everywhere, by the bias of its last layer: each stage then looks in the
middle of what the stage before looked at, whoever runs them.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

# One fold each of localiser and coarse stage, five of each fine network.
FOLDS = range(5)
STAGES: dict[str, dict[str, Any]] = {
    "localiser": {
        "dataset": "Dataset001_head",
        "spacing": [3.0, 2.0, 2.0],
        "patch": [96, 160, 160],
        "last_stride": [1, 2, 2],
        "channels": ["CT"],
        "labels": ["head"],
        "folds": ["all"],
    },
    "coarse": {
        "dataset": "Dataset002_coarse",
        "spacing": [2.0, 2.0, 2.0],
        "patch": [128, 128, 128],
        "last_stride": [2, 2, 2],
        "channels": ["CT", "PET"],
        "labels": ["GTVp", "GTVn"],
        "folds": ["all"],
    },
    "fine": {
        "dataset": "Dataset003_fine",
        "spacing": [1.0, 1.0, 1.0],
        "patch": [160, 160, 160],
        "last_stride": [2, 2, 2],
        "channels": ["CT", "CT2", "CT3", "PET"],
        "labels": ["GTVp", "GTVn"],
        "folds": list(FOLDS),
    },
}
FEATURES = [32, 64, 128, 256, 320, 320]
BIAS = 50.0
SEGRESNET = {"init_filters": 32, "blocks_down": [1, 2, 2, 4, 4], "norm": "INSTANCE", "dsdepth": 4}
ROI = [144, 144, 144]


def make_members(results: Path, work_dir: Path) -> None:
    """Writes all twelve networks.

    Args:
        results: nnU-Net's results folder; localiser, coarse and five fine ResEncs.
        work_dir: Auto3DSeg's; five SegResNets.
    """
    os.environ["nnUNet_results"] = str(results)  # noqa: SIM112 - nnU-Net spells it so
    for stage in STAGES.values():
        _make_unets(stage)
    for fold in FOLDS:
        _make_segresnet(work_dir / f"segresnet_{fold}", fold)


def trained_folder(results: Path, stage: str) -> Path:
    """Where nnU-Net keeps a stage's folds."""
    return results / STAGES[stage]["dataset"] / "nnUNetTrainer__nnUNetPlans__3d_fullres"


def _make_unets(stage: dict[str, Any]) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, dataset = make_plans(stage, residual=len(stage["channels"]) > 2)
    for fold in stage["folds"]:
        torch.manual_seed(0 if fold == "all" else fold)
        nnunet_plans = deepcopy(plans) | {"continue_training": False}
        trainer = nnUNetTrainer(nnunet_plans, "3d_fullres", fold, dataset, torch.device("cpu"))
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager,
            trainer.configuration_manager,
            len(stage["channels"]),
            trainer.label_manager.num_segmentation_heads,
            enable_deep_supervision=True,
        )
        for name, weights in trainer.network.state_dict().items():
            if "seg_layers" in name and name.endswith("bias"):
                weights[1] += BIAS
        trainer.optimizer, _ = trainer.configure_optimizers()
        folder = Path(trainer.output_folder)
        folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    (folder.parent / "plans.json").write_text(json.dumps(plans))
    (folder.parent / "dataset.json").write_text(json.dumps(dataset))


def make_plans(stage: dict[str, Any], *, residual: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """nnU-Net's plans and dataset.json.

    Args:
        stage: Of `STAGES`.
        residual: A ResidualEncoderUNet instead of a PlainConvUNet.
    """
    dataset = {
        "channel_names": {str(n): name for n, name in enumerate(stage["channels"])},
        "labels": {"background": 0} | {name: n for n, name in enumerate(stage["labels"], start=1)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    return _plans(stage, residual), dataset


def _plans(stage: dict[str, Any], residual: bool) -> dict[str, Any]:
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    properties = {"mean": 0.0, "std": 0.5, "percentile_00_5": -1.0, "percentile_99_5": 1.0}
    enhanced = len(stage["channels"]) > 2
    schemes = ["CTNormalization"] * 3 if enhanced else ["ZScoreNormalization"]
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": stage["patch"],
        "spacing": stage["spacing"],
        "normalization_schemes": [*schemes, "ZScoreNormalization"][: len(stage["channels"])],
        "use_mask_for_norm": [False] * len(stage["channels"]),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": data | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": data | {"order": 1},
        "architecture": _architecture(stage, residual=residual),
        "batch_dice": False,
    }
    return {
        "dataset_name": stage["dataset"],
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(n): properties for n in range(len(stage["channels"]))
        },
        "configurations": {"3d_fullres": configuration},
    }


def _architecture(stage: dict[str, Any], *, residual: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "n_stages": len(FEATURES),
        "features_per_stage": FEATURES,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * len(FEATURES),
        "strides": [[1, 1, 1], *([[2, 2, 2]] * (len(FEATURES) - 2)), stage["last_stride"]],
        "n_conv_per_stage_decoder": [1 if residual else 2] * (len(FEATURES) - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    settings |= {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6]} if residual else {"n_conv_per_stage": [2] * 6}
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": settings,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _make_segresnet(folder: Path, fold: int) -> None:
    from monai.networks.nets import SegResNetDS

    torch.manual_seed(fold)
    shape = {"in_channels": 2, "out_channels": 3}
    network = SegResNetDS(spatial_dims=3, **SEGRESNET, **shape)  # type: ignore[arg-type]
    network.up_layers[-1]["head"].bias.data[1] += BIAS
    config = {
        "modality": "ct",
        "fold": fold,
        "input_channels": 2,
        "output_classes": 3,
        "roi_size": ROI,
        "orientation_ras": True,
        "crop_foreground": True,
        "sigmoid": False,
        "resample": False,
        "resample_resolution": [1.0, 1.0, 1.0],
        "normalize_mode": "range",
        "intensity_bounds": [-1.0, 1.0],
        "extra_modalities": {"image2": "pet"},
        "class_names": ["GTVp", "GTVn"],
        "network": {"_target_": "SegResNetDS", **SEGRESNET, **shape},
    }
    for part in ("model", "configs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "hyper_parameters.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    torch.save({"state_dict": network.state_dict(), "config": config, "epoch": 0}, folder / "model/model.pt")
