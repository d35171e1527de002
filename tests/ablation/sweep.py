"""What `train.py sweeps=ablation` leaves, in two folds, without training: random networks and their files."""

import json
from pathlib import Path
from typing import Any

from members import DECISION, card, write_run

# Two cases a fold, as `entry.write_cohort` names them.
FOLDS = [["A-0", "B-1"], ["A-2", "B-3"]]
CASES = [case_id for fold in FOLDS for case_id in fold]
# Name of the arm, stage, model, enhancement: what sweeps/ablation.yaml trains.
TRAININGS = [
    ("head_plainconv", "head", "plainconv", False),
    ("coarse_plainconv", "coarse", "plainconv", False),
    ("fine_resenc", "fine", "resenc", False),
    ("fine_resenc_cte", "fine", "resenc", True),
    ("fine_segresnet", "fine", "segresnet", False),
    ("fine_segresnet_cte", "fine", "segresnet", True),
]


def write_sweep(runs: Path, trainings: list[tuple[str, str, str, bool]] = TRAININGS) -> Path:
    """Every training's runs: RUNS/ARM/ARM_fold_K with config.json, split.json, best.ckpt, score.json."""
    for number, (arm, stage, model, cte) in enumerate(trainings):
        for fold, held_out in enumerate(FOLDS):
            trained_on = [case_id for case_id in CASES if case_id not in held_out]
            member = card(
                stage,
                model,
                name=f"{arm}_fold_{fold}",
                fold=fold,
                input={"cte": cte},
                decision=DECISION | {"rule": "argmax"},
                trained_on=trained_on,
            )
            folder = write_run(runs / arm, member, seed=10 * number + fold)
            write_config(folder, arm=arm, stage={"name": stage}, model={"name": model}, cte=cte, fold=fold)
            (folder / "split.json").write_text(json.dumps({"folds": FOLDS}))
    return runs


def write_config(folder: Path, **config: Any) -> None:
    """The part of a run's configuration that says what it is."""
    usual = {"training": {"epochs": 1}, "logger": {"project": "hnseg"}}
    (folder / "config.json").write_text(json.dumps(usual | config))
