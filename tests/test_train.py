"""train.py as typed: mistakes told at once, and what a run leaves."""

import csv
import json
import re
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from entry import compose_job, job, load, refused, run, tiny, weights, write_cohort

from hnseg.errors import HnsegError
from hnseg.models.bundle import Bundle, export_bundle


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing anything heavy ends the program."""
    for name in ("torch", "monai", "lightning", "torchio", "wandb"):
        (tmp_path / "heavy").mkdir(exist_ok=True)
        (tmp_path / "heavy" / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return {"PYTHONPATH": str(tmp_path / "heavy")}


def test_without_data_one_line_names_the_key_and_the_demo(tmp_path: Path, light: dict[str, str]) -> None:
    line = refused(run("train.py", "stage=fine", "model=resenc", cwd=tmp_path, **light))
    assert line.startswith("train.py: error: data.root")
    assert "make demo" in line


@pytest.fixture(scope="module")
def names_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases of empty files: names are all that is looked at before training starts."""
    scans = tmp_path_factory.mktemp("names") / "scans"
    for n in range(8):
        (scans / f"A-{n}").mkdir(parents=True)
        for suffix in ("__CT", "__PT", ""):
            (scans / f"A-{n}" / f"A-{n}{suffix}.nii.gz").touch()
    return scans


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fold=5"], r"fold=5.*folds 0 to 4"),
        (["data.folds=9"], r"data\.folds=9 with 8 cases"),
        (["data.exclude=[A-99]"], r"data\.exclude=A-99"),
        (["data.split=nowhere.json"], r"nowhere\.json"),
        (["job=coarse"], r"data\.head_labels=.*heads: no head mask of A-1.*data\.head_masks=DIR"),
        (["job=coarse", "data.head_masks=none"], r"data\.head_masks=none: no head mask of A-1"),
    ],
)
def test_impossible_settings_are_told(
    names_only: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    cfg = compose_job("train", f"data.root={names_only}", f"runs={tmp_path}", *arguments)
    with pytest.raises(HnsegError, match=message):
        load("train").main(cfg)
    assert not any(tmp_path.iterdir())  # no run was begun


def test_a_range_of_folds_is_five_jobs(tmp_path: Path, light: dict[str, str]) -> None:
    """Each job gets as far as the missing data, and none leaves a run behind."""
    told = run("train.py", "stage=fine", "model=resenc", "fold=0-4", "-m", cwd=tmp_path, **light)
    assert told.returncode == 2
    jobs = re.findall(r"^train\.py: error: data\.root .*fold=(\d)", told.stderr, re.MULTILINE)
    assert jobs == ["0", "1", "2", "3", "4"]
    assert not list(tmp_path.glob("runs/*/fine*"))


def test_a_run_leaves_what_is_documented(cohort: Path, tmp_path: Path) -> None:
    dice = job(cohort, tmp_path)
    (folder,) = tmp_path.glob("hecktor/fine_resenc_cte/fold_0")
    names = {path.name for path in folder.iterdir()}
    told = {"config.json", "split.json", "score.json", "progress.json"}
    told |= {"metrics.csv", "curves.png", "train.log"}
    assert names == {*told, "run.id", "best.ckpt", "last.ckpt"}
    scores = json.loads((folder / "score.json").read_text())
    assert scores["val/dice"] == dice
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["epoch"], progress["epochs"]) == (1, 1)
    assert progress["best"] == pytest.approx(dice)
    assert {"val/gtvp_dsc", "val/gtvn_dsc_agg", "val/gtvn_f1_agg"} <= scores.keys()
    card = torch.load(folder / "best.ckpt", weights_only=True)["hnseg"]
    assert (card["stage"]["name"], card["model"], card["fold"]) == ("fine", "resenc", 0)
    held = set(json.loads((folder / "split.json").read_text())["folds"][0])
    assert held
    assert not held & set(card["trained_on"])


def test_a_gated_run_logs_the_weights_of_its_channels(cohort: Path, tmp_path: Path) -> None:
    job(cohort, tmp_path, "model.gating=true", "training.epochs=2", "training.iterations=3")
    (folder,) = tmp_path.glob("hecktor/fine_resenc_cte/fold_0")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["gate/ct"]]
    logged = [float(rows[-1][f"gate/{name}"]) for name in ("ct", "ct_square", "ct_cube_root", "pet")]
    assert len(rows) == 2
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    logits = stored["state_dict"]["network.gate.logits"]
    assert logits.abs().min() > 0  # it has learned
    torch.testing.assert_close(torch.tensor(logged), 4 * logits.exp() / logits.exp().sum())
    export_bundle([folder], tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    network = member.loaded()[1]
    best = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(network.gate.logits, best["network.gate.logits"])


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the fold's constants are measured, as for the first, or lie in the cache."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        job(
            cohort,
            tmp_path,
            f"name={name}",
            f"seed={seed}",
            "recipe=best",
            f"data.cache={tmp_path / 'cache'}",
        )
    a, b, c = (weights(tmp_path / name / "fine_resenc_cte" / "fold_0") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    # recipe=best wants coarse ROIs to choose the checkpoint, and there are no coarse predictions.
    assert "recipe.roi.validation=coarse without data.coarse: val/dice" in capsys.readouterr().out


def write_coarse(folder: Path, cohort: Path, out_of_fold: str = "yes") -> Path:
    """Coarse predictions as infer.py leaves them: the truth, moved by a voxel or gone."""
    folder.mkdir()
    rows = ["case_id,status,out_of_fold"]
    for case in sorted(p.name for p in cohort.iterdir() if p.name != "heads"):
        truth = sitk.ReadImage(str(cohort / case / f"{case}.nii.gz"))
        moved = sitk.Cast(sitk.CyclicShift(truth, (1, 0, 0)), sitk.sitkUInt8)
        sitk.WriteImage(moved * 0 if case == "A-0" else moved, str(folder / f"{case}.nii.gz"))
        rows.append(f"{case},ok,{out_of_fold}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("train_roi", ["ground_truth", "coarse"])
def test_the_fine_stage_reports_the_oracle_and_the_pipeline(
    cohort: Path, tmp_path: Path, train_roi: str, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = write_coarse(tmp_path / "coarse", cohort)
    roi = [f"data.coarse={coarse}", f"recipe.roi.train={train_roi}", "recipe.roi.validation=coarse"]
    cfg = compose_job("train", "stage=fine", *tiny("resenc", cohort, tmp_path), *roi, "logger=csv")
    load("train").main(cfg)
    scores = json.loads((Path(cfg.run_dir) / "score.json").read_text())
    progress = json.loads((Path(cfg.run_dir) / "progress.json").read_text())
    assert progress["best"] == scores["val/dice"] != scores["val_coarse/dice"]  # which chose best.ckpt
    assert {"val/dice", "val_coarse/dice", "val_coarse/dice_GTVn"} <= scores.keys()
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"{scores['val/dice']:.4f} in ROIs placed by the ground truth" in line
    assert f"{scores['val_coarse/dice']:.4f} in ROIs placed by coarse predictions" in line


def test_coarse_predictions_of_a_network_that_saw_the_case_are_refused(cohort: Path, tmp_path: Path) -> None:
    overrides = ["stage=fine", *tiny("resenc", cohort, tmp_path), "logger=csv"]
    seen = write_coarse(tmp_path / "seen", cohort, out_of_fold="no")
    with pytest.raises(HnsegError, match="made by networks trained on A-0, A-2"):
        load("train").main(compose_job("train", *overrides, f"data.coarse={seen}"))
    (seen / "cases.csv").unlink()
    with pytest.raises(HnsegError, match=r"cases\.csv does not list A-0"):
        load("train").main(compose_job("train", *overrides, f"data.coarse={seen}"))
    with pytest.raises(HnsegError, match=r"data\.coarse=.*nowhere: no such folder"):
        load("train").main(compose_job("train", *overrides, f"data.coarse={tmp_path / 'nowhere'}"))
    unlisted = write_coarse(tmp_path / "unlisted", cohort)  # as masks of another stage are, or copied ones
    (unlisted / "cases.csv").write_text("case_id,status,out_of_fold\nA-0,ok,yes\n")
    with pytest.raises(HnsegError, match=r"cases\.csv does not list A-2, B-1, B-3"):
        load("train").main(compose_job("train", *overrides, f"data.coarse={unlisted}"))
    few = write_coarse(tmp_path / "few", cohort)
    (few / "B-1.nii.gz").unlink()
    with pytest.raises(HnsegError, match="no prediction of B-1"):
        load("train").main(compose_job("train", *overrides, f"data.coarse={few}"))
    with pytest.raises(HnsegError, match="needs coarse predictions"):
        load("train").main(compose_job("train", *overrides, "recipe.roi.train=coarse"))
    assert not (tmp_path / "hecktor").exists()  # nothing begun
