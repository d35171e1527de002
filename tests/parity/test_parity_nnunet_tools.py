"""A two-fold nnU-Net made with nnU-Net's own tools, imported, and run beside nnU-Net's predictor.

From a phantom cohort: fingerprint, plan, preprocessing and a few iterations of nnUNetTrainer.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch
from float32_sums import sum_in_float32
from members import Ensemble
from nnunet_results import CPU, assert_same, dataset, sharpen, theirs
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from hnseg.card import STUDY, Decision, Stage
from hnseg.data.phantom import make_cohort
from hnseg.data.resample import sample_images, sample_label
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.grid import Grid
from hnseg.imaging.images import read_image
from hnseg.imaging.placement import place_grid
from hnseg.importing.nnunet import import_nnunet
from hnseg.models.bundle import Bundle

pytestmark = pytest.mark.slow
NAME = "Dataset501_Fine"
STAGE = Stage("fine", (30, 26, 22), (5.0, 5.0, 6.0), "lesions")
PATCH = [16, 24, 24]  # (z, y, x): smaller than the stage's ROI
SMALLER = (20, 18, 12)  # (x, y, z): an ROI smaller than the patch
RAW = ["stage=fine", "recipe=authors", "recipe.source=study", "recipe.roi_minmax=[]"]
RAW += ["recipe.pet=raw", "recipe.ct_window=null", f"stage.spacing={list(STAGE.spacing)}"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("tools")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / f"nnUNet_{name}"))
        patch.setenv("nnUNet_n_proc_DA", "1")
        yield root


@pytest.fixture(scope="module")
def cases(environment: Path) -> list[Case]:
    """Five of the phantom; the last is left for inference."""
    make_cohort(environment / "phantom", 5, 0, workers=1)
    return read_cases(environment / "phantom")


def study(case: Case, stage: Stage = STAGE) -> tuple[sitk.Image, sitk.Image, sitk.Image, Grid]:
    """CT, PET, label, and the fine grid of a case."""
    assert case.label is not None
    ct, pet, label = (read_image(path) for path in (case.ct, case.pet, case.label))
    return ct, pet, label, place_grid(stage, ct, label)


def write_channels(stem: Path, ct: sitk.Image, pet: sitk.Image, grid: Grid) -> list[str]:
    """STEM_0000.nii.gz and STEM_0001.nii.gz: CT in HU and PET in SUV on the grid."""
    images = sample_images(STUDY, ct, pet, grid)
    paths = [f"{stem}_000{n}.nii.gz" for n in range(2)]
    for name, path in zip(("ct", "pet"), paths, strict=True):
        sitk.WriteImage(grid.image(images[name]), path)
    return paths


def write_dataset(folder: Path, cases: list[Case]) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in cases:
        ct, pet, label, grid = study(case)
        write_channels(folder / "imagesTr" / case.case_id, ct, pet, grid)
        truth = grid.image(sample_label(STUDY, label, ct, grid))
        sitk.WriteImage(truth, str(folder / "labelsTr" / f"{case.case_id}.nii.gz"))
    (folder / "dataset.json").write_text(json.dumps(dataset()))


@pytest.fixture(scope="module")
def plans(environment: Path, cases: list[Case]) -> dict[str, Any]:
    """Fingerprint, plan and preprocessing; the planner's network is made small enough for seconds."""
    write_dataset(environment / "nnUNet_raw" / NAME, cases[:4])
    extract_fingerprints([501], num_processes=1, verbose=False)
    plan_experiments([501], "nnUNetPlannerResEncM")
    folder = environment / "nnUNet_preprocessed" / NAME
    path = folder / "nnUNetResEncUNetMPlans.json"
    plans = json.loads(path.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": PATCH, "batch_size": 2}
    settings = configuration["architecture"]["arch_kwargs"]
    settings |= {"n_stages": 3, "features_per_stage": [4, 8, 8], "strides": [[1] * 3, [2] * 3, [2] * 3]}
    settings |= {"kernel_sizes": [[3] * 3] * 3, "n_blocks_per_stage": [1, 1, 1]}
    settings["n_conv_per_stage_decoder"] = [1, 1]
    path.write_text(json.dumps(plans))
    preprocess([501], "nnUNetResEncUNetMPlans", ["3d_fullres"], [1])
    names = [case.case_id for case in cases[:4]]
    splits = [{"train": names[:2], "val": names[2:]}, {"train": names[2:], "val": names[:2]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return plans


@pytest.fixture(scope="module")
def trained(plans: dict[str, Any]) -> Path:
    """The results folder of both folds, weights sharpened after two iterations each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")  # augmentation in this process
        for fold in (0, 1):
            torch.manual_seed(fold)
            planned = deepcopy(plans) | {"continue_training": False}
            trainer = nnUNetTrainer(planned, "3d_fullres", fold, dataset(), CPU)
            trainer.num_epochs = trainer.num_val_iterations_per_epoch = 1
            trainer.num_iterations_per_epoch = 2
            trainer.run_training()
            sharpen(trainer.network, 200)
            trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return Path(trainer.output_folder_base)


@pytest.mark.parametrize("size", [STAGE.size, SMALLER], ids=["larger", "smaller"])
def test_a_two_fold_nnunet_is_imported_and_infers_identically(trained, cases, size, tmp_path, monkeypatch):
    bundle = tmp_path / "bundle"
    import_nnunet(trained, [*RAW, f"stage.size={list(size)}"], bundle)
    members = Bundle.load(bundle).members
    assert [member.card.trained_on for member in members] == [
        tuple(sorted(case.case_id for case in part)) for part in (cases[:2], cases[2:4])
    ]
    ct, pet, _, grid = study(cases[4], replace(STAGE, size=size))
    channels = [sitk.ReadImage(path) for path in write_channels(tmp_path / "unseen", ct, pet, grid)]
    sum_in_float32(monkeypatch)
    for folds, mirror in product([(0,), (1,), (0, 1)], [False, True]):
        chosen, decision = [members[fold] for fold in folds], Decision(fusion="authors")
        ensemble = Ensemble(chosen, mirror=mirror, decision=decision)
        reference = theirs(trained, channels, folds, mirror=mirror)
        assert_same(torch.from_numpy(ensemble(ct, pet, grid)), reference)
