"""What `train.py sweeps=ablation` leaves, in two folds, without training: thresholds of HU and SUV."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from fabricate import volume, write_case
from members import DECISION, card, write_run

FOLDS = [["A-0", "B-1"], ["A-2", "B-3"]]
CASES = [case_id for fold in FOLDS for case_id in fold]
# Name of the arm, stage, model, enhancement: what sweeps/ablation.yaml trains.
TRAININGS = [
    ("localiser_plainconv", "localiser", "plainconv", False),
    ("coarse_plainconv", "coarse", "plainconv", False),
    ("fine_resenc", "fine", "resenc", False),
    ("fine_resenc_cte", "fine", "resenc", True),
    ("fine_segresnet", "fine", "segresnet", False),
    ("fine_segresnet_cte", "fine", "segresnet", True),
]
SHARES = {"fine_resenc": 0.1, "fine_resenc_cte": 0.15, "fine_segresnet": 0.25, "fine_segresnet_cte": 0.65}


def write_patients(root: Path) -> Path:
    """Cases whose hot spot is a node, beside one that PET does not show, and whose bone is the tumour."""
    label = np.zeros((30, 40, 40), np.uint8)
    label[10:22, 18:22, 18:22] = 1
    label[13:18, 12:18, 12:18] = 2
    label[20:23, 24:30, 24:30] = 2
    for seed, case_id in enumerate(CASES):
        write_case(root, case_id, seed=seed, label=volume(label, (2, 2, 3)))
    return root


def write_sweep(runs: Path, trainings: list[tuple[str, str, str, bool]] = TRAININGS) -> Path:
    """Every training's runs: RUNS/ARM/ARM_fold_K with config.json, best.ckpt, score.json."""
    for arm, stage, model, cte in trainings:
        for fold, held_out in enumerate(FOLDS):
            member = card(
                stage,
                "pointwise",
                _head() if stage == "localiser" else _lesions(cte, SHARES.get(arm, 0.2) + 0.02 * fold),
                name=f"{arm}_fold_{fold}",
                model=model,
                fold=fold,
                input={"cte": cte},
                decision=DECISION | {"rule": "argmax"},
                trained_on=[case_id for case_id in CASES if case_id not in held_out],
            )
            folder = write_run(runs / arm, member)
            write_config(folder, arm=arm, stage={"name": stage}, model={"name": model}, cte=cte, fold=fold)
    return runs


def write_config(folder: Path, **config: Any) -> None:
    """The part of a run's configuration that says what it is."""
    usual = {"training": {"epochs": 1}, "logger": {"project": "hnseg"}}
    (folder / "config.json").write_text(json.dumps(usual | config))
    (folder / "run.id").touch()


def read(folder: Path, case_id: str) -> sitk.Image:
    """FOLDER/CASE.nii.gz."""
    return sitk.ReadImage(str(folder / f"{case_id}.nii.gz"))


def _head() -> dict[str, Any]:
    """Settings of a network that takes all tissue for the head."""
    return {"weights": [[0.0], [40.0]], "biases": [0.0, -20.0]}


def _lesions(cte: bool, share: float) -> dict[str, Any]:
    """GTVp where CT is bone, GTVn where PET is above a share of its scale's 20 SUV."""
    more = [0.0] * (2 if cte else 0)
    weights = [[0.0, *more, 0.0], [20.0, *more, 0.0], [0.0, *more, 60.0]]
    return {"weights": weights, "biases": [0.0, -20 * 0.9, -60 * share]}
