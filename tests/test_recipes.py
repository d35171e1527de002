"""Each recipe from trained stages, out-of-fold coarse predictions included, to masks."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from entry import TINY_MODEL, compose_job, load, write_cohort

from hnseg.models.bundle import Bundle, export_bundle

pytestmark = pytest.mark.slow

# Head and coarse ROIs that hold the fabricated scan, and a fine one that does not.
GRIDS = {
    "localiser": ["stage.size=[16,16,16]", "stage.spacing=[6,6,6]"],
    "coarse": ["stage.size=[16,16,16]", "stage.spacing=[6,6,6]", "stage.top=1.0"],
    "fine": ["stage.size=[16,16,16]", "stage.spacing=[3,3,3]"],
}
BRIEF = ["training.patch=[16,16,16]", "training.epochs=2", "training.iterations=1", "training.batch_size=2"]


def train(stage: str, model: str, fold: str, cohort: Path, runs: Path, *more: str) -> None:
    places = [f"data.root={cohort}", f"data.cache={runs.parent / 'cache'}", f"runs={runs}", f"fold={fold}"]
    machine = ["trainer.device=cpu", "trainer.precision=float32", "data.folds=2", "data.prepare_workers=1"]
    settings = [*GRIDS[stage], *TINY_MODEL[model], *BRIEF, *places, *machine, "logger=csv"]
    load("train").main(compose_job("train", f"stage={stage}", f"model={model}", *settings, *more))


def infer(cases: Path, bundle: Path, out: Path, *more: str) -> list[dict[str, str]]:
    machine = ["trainer.device=cpu", "trainer.precision=float32"]
    load("infer").main(
        compose_job("infer", f"cases={cases}", f"bundle={bundle}", f"out={out}", *machine, *more)
    )
    with (out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("recipe", ["paper", "authors", "best"])
def test_a_recipe_goes_from_cohort_to_masks(tmp_path: Path, recipe: str) -> None:
    cohort = write_cohort(tmp_path / "scans")
    runs, chosen = tmp_path / "runs", f"recipe={recipe}"
    # A network of two steps may find nothing; whether that ends a case is tested elsewhere.
    chain = "recipe.decision.fallback=chain"
    train("localiser", "plainconv", "all", cohort, runs, chosen, chain)
    for fold in ("0", "1"):
        train("coarse", "plainconv", fold, cohort, runs, chosen, chain)
    folds = [runs / "hecktor" / "coarse_plainconv" / f"fold_{k}" for k in (0, 1)]
    export_bundle(folds, tmp_path / "coarse_bundle")
    rows = infer(
        cohort,
        tmp_path / "coarse_bundle",
        tmp_path / "coarse",
        "last_stage=coarse",
        "out_of_fold=true",
        f"head_masks={cohort / 'heads'}",
    )
    assert {row["out_of_fold"] for row in rows} == {"yes"}
    oof = f"data.coarse={tmp_path / 'coarse'}"
    for model in ("resenc", "segresnet"):
        train("fine", model, "0", cohort, runs, chosen, chain, oof)
    scores = json.loads(next(runs.glob("hecktor/fine_segresnet/fold_0/score.json")).read_text())
    assert {"val/dice", "val_coarse/dice"} <= scores.keys()

    export_bundle([runs / "hecktor"], tmp_path / "bundle")
    members = Bundle.load(tmp_path / "bundle").members
    assert {m.card.recipe for m in members} == {recipe}
    assert all(m.card.split for m in members)
    for member in members:
        constants = [one for one in member.card.input.normalise if one.constants]
        assert bool(constants) == bool(member.card.fingerprint)
    rows = infer(cohort, tmp_path / "bundle", tmp_path / "masks")
    assert [row["status"] for row in rows] == ["ok"] * 4
    for row in rows:
        name = row["case_id"]
        mask = sitk.ReadImage(str(tmp_path / "masks" / f"{name}.nii.gz"))
        ct = sitk.ReadImage(str(cohort / name / f"{name}__CT.nii.gz"))
        assert mask.GetSize() == ct.GetSize()
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}
