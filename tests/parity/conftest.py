"""nnU-Net as it sets itself up: its own planner's configuration of each stage, its own trainer on it."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class Cohort(NamedTuple):
    """What nnU-Net's planner knows of a stage's data; grids are the paper's (section 2.3), (z, y, x)."""

    planner: type[ExperimentPlanner]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    channels: int
    labels: tuple[str, ...]
    cases: int


LESIONS = ("background", "GTVp", "GTVn")
COHORTS = {
    "localiser": Cohort(ExperimentPlanner, (3.0, 2.0, 2.0), (128, 256, 256), 1, ("background", "head"), 40),
    "coarse": Cohort(ExperimentPlanner, (2.0, 2.0, 2.0), (144, 144, 144), 2, LESIONS, 680),
    "fine": Cohort(nnUNetPlannerResEncL, (1.0, 1.0, 1.0), (144, 144, 144), 4, LESIONS, 544),
}


@pytest.fixture(scope="session", autouse=True)
def threads_instead_of_forks() -> Iterator[None]:
    """nnU-Net lists a data set by twelve forks; in a process with threads, as this one, they may hang."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
        yield


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], nnUNetTrainer]]:
    """`nnunet(stage)`: a trainer on the CPU, on the plan that nnU-Net makes for the stage's grid."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / name))

        @cache
        def trainer(stage: str) -> nnUNetTrainer:
            return _trainer(COHORTS[stage], root, f"Dataset00{[*COHORTS].index(stage) + 1}_{stage}")

        yield trainer


def _trainer(cohort: Cohort, root: Path, name: str) -> nnUNetTrainer:
    dataset = {
        "channel_names": {str(n): f"channel {n}" for n in range(cohort.channels)},
        "labels": {label: n for n, label in enumerate(cohort.labels)},
        "numTraining": cohort.cases,
        "file_ending": ".nii.gz",
    }
    plans = {
        "dataset_name": name,
        "plans_name": "plans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": _planned(cohort, dataset, root, name)},
    }
    # As nnUNetv2_train passes it on; the trainer takes the key out again.
    return nnUNetTrainer(plans | {"continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))


def _planned(cohort: Cohort, dataset: dict[str, Any], root: Path, name: str) -> dict[str, Any]:
    raw, preprocessed = root / "raw" / name, root / "preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    (raw / "dataset.json").write_text(json.dumps(dataset))
    fingerprint = {
        "spacings": [cohort.spacing] * cohort.cases,
        "shapes_after_crop": [cohort.shape] * cohort.cases,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    voxels = float(cohort.cases * torch.Size(cohort.shape).numel())
    with torch.device("meta"):  # it builds networks to count their feature maps
        planned = cohort.planner(name).get_plans_for_configuration(
            list(cohort.spacing), cohort.shape, name, voxels, {}
        )
    # As a plans file holds it; without a low-resolution configuration the planner turns batch Dice off.
    return json.loads(json.dumps(planned | {"batch_dice": False}, default=int))
