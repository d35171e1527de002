"""`hnseg ablation`: out of fold at every stage, the masks of infer.py, the scores of the masks."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from entry import compose_job, hnseg, load
from results import contents, record, table
from safetensors.torch import load_file
from scores_by_hand import official_scores
from sweep import CASES, FOLDS, TRAININGS, read, write_config, write_patients, write_sweep
from wandb_files import offline_runs

from hnseg.inference.backends import Networks
from hnseg.inference.cascade import Cascade
from hnseg.models.checkpoint import Member

ARMS = ["full", "no_cte", "srn_cte", "resenc_cte", "resenc"]
CPU = ["trainer.device=cpu", "trainer.precision=float32", "backend=torch"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_patients(tmp_path_factory.mktemp("ablation") / "cohort")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "runs")


def ablation(runs: Path, cohort: Path, out: Path, *options: str) -> str | None:
    """Refusal of `hnseg ablation`, without log and report unless the options ask for them."""
    usual = ["--no-report", "--logger", "none"]
    done = hnseg("ablation", runs, "--data", cohort, "--out", out, *CPU, *usual, *options)
    errors = [line for line in done.stderr.splitlines() if line.startswith("hnseg: error:")]
    assert done.returncode == (2 if errors else 0), done.stderr
    return errors[0] if errors else None


@pytest.fixture(scope="module")
def asked(runs, cohort, tmp_path_factory) -> tuple[Path, list[tuple[str, Member]]]:
    """The ablation's folder, and every case with each network that was asked about it."""
    out, asked, case = tmp_path_factory.mktemp("out") / "ablation", [], ""
    segment, network = Cascade.__call__, Networks.__call__

    def segment_noted(self, ct, pet, case_id="", cache=None):
        nonlocal case
        case = case_id
        return segment(self, ct, pet, case_id, cache)

    def network_noted(self, member):
        asked.append((case, member))
        return network(self, member)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cascade, "__call__", segment_noted)
        patch.setattr(Networks, "__call__", network_noted)
        options = ["--report", "--logger", "wandb", "--arms", ",".join(ARMS)]
        assert ablation(runs, cohort, out, *options) is None
    return out, asked


@pytest.fixture(scope="module")
def out(asked) -> Path:
    return asked[0]


def test_no_case_meets_a_network_that_was_trained_on_it(asked, out):
    """Nor does any network look twice: a case meets one of each kind, its own fold's, for all arms."""
    expected = {
        (case_id, f"{arm}_fold_{fold}")
        for fold, held_out in enumerate(FOLDS)
        for case_id in held_out
        for arm, *_ in TRAININGS
    }
    assert Counter((case_id, member.card.name) for case_id, member in asked[1]) == Counter(expected)
    assert not [case_id for case_id, member in asked[1] if case_id in member.card.trained_on]
    for arm in ARMS:
        assert {row["out_of_fold"] for row in table(out / arm).values()} == {"yes"}


@pytest.mark.parametrize("arm", ["full", "resenc"])
def test_an_arms_folder_is_what_infer_py_leaves(out, cohort, tmp_path, arm):
    """Bit by bit, though there every stage runs for the one arm."""
    given = [f"cases={cohort}", f"bundle={out / 'bundle'}", f"out={tmp_path / arm}", "out_of_fold=true"]
    maps = f"probabilities={str(arm == 'full').lower()}"
    load("infer").main(compose_job("infer", *given, f"arms={arm}", maps, *CPU))
    assert contents(tmp_path / arm) == contents(out / arm)
    assert any(sitk.GetArrayFromImage(read(out / arm, case_id)).any() for case_id in CASES)


def test_the_table_holds_the_scores_of_the_saved_masks(out, cohort):
    content = json.loads((out / "ablation.json").read_text())
    assert (content["arms"], content["data"]) == (ARMS, str(cohort.resolve()))
    rows = {(row["arm"], row["center"]): row for row in content["rows"]}
    assert set(rows) == {(arm, center) for arm in ARMS for center in (None, "A", "B")}
    for arm in ARMS:
        expected = official_scores([(read(out / arm, name), read(cohort / name, name)) for name in CASES])
        assert {name: rows[arm, None][name] for name in expected} == pytest.approx(expected)
        for name in expected if arm != "full" else ():
            difference = expected[name] - rows["full", None][name]
            assert rows[arm, None][f"{name}_difference"] == pytest.approx(difference)
    for score in ("gtvn_dsc_agg", "gtvn_f1_agg"):  # there is something to compare
        assert len({rows[arm, None][score] for arm in ARMS}) > 1


def test_files_of_the_table_the_log_and_the_report_agree_with_it(out):
    """The report draws the baseline, which alone has maps."""
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    with (out / "ablation.csv").open(newline="") as file:
        assert [row["gtvn_dsc_agg"] for row in csv.DictReader(file)] == [
            str(row["gtvn_dsc_agg"]) for row in rows
        ]
    for name in ("ablation.md", "ablation.tex", "report.html"):
        text = (out / name).read_text()
        assert all(f"{row['gtvn_dsc_agg']:.4f}" in text for row in rows)
    assert [found.run.display_name for found in offline_runs(out)] == ["ablation"]
    assert {path.name for path in (out / "full" / "maps").iterdir()} == set(CASES)
    assert not (out / "resenc" / "maps").exists()


def test_the_same_command_segments_nothing_again(out, runs, cohort, tmp_path):
    """But for the mask that has gone, be it from a bundle that has to be made anew."""
    again = tmp_path / "again"
    shutil.copytree(out, again)
    (again / "resenc" / "B-1.nii.gz").unlink()
    (again / "bundle" / "checkpoints.json").write_text("[]")
    kept = {path: path.stat().st_mtime_ns for path in again.glob("*/*.json") if path.stem in CASES}
    assert ablation(runs, cohort, again, "--arms", ",".join(ARMS)) is None
    written = [path for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert written == [again / "resenc" / "B-1.json"]
    assert contents(again / "resenc") == contents(out / "resenc")


def test_other_checkpoints_than_the_best_may_be_asked_for(runs, cohort, tmp_path):
    """Which these cases had no say in; a bundle of the best is made anew."""
    sweep, out = tmp_path / "runs", tmp_path / "out"
    shutil.copytree(runs, sweep)
    for best in sweep.rglob("best.ckpt"):
        stored = torch.load(best, weights_only=True)
        stored["state_dict"] = {name: torch.zeros_like(w) for name, w in stored["state_dict"].items()}
        torch.save(stored, best.with_name("last.ckpt"))
    for choice in ("best", "last"):
        assert ablation(sweep, cohort, out, "--arms", "full,resenc", "--checkpoint", choice) is None
        weights = [w for path in out.rglob("weights.safetensors") for w in load_file(path).values()]
        assert any(w.any() for w in weights) == (choice == "best")


def test_an_oracle_places_the_fine_roi_on_the_true_lesions(runs, cohort, tmp_path):
    """It needs no head or coarse run, and its arms are called by what they are."""
    fine = write_sweep(tmp_path / "fine", [one for one in TRAININGS if one[1] == "fine"])
    out = tmp_path / "out"
    options = ["--arms", "resenc,full", "--oracle-roi"]
    assert ablation(fine, cohort, out, *options) is None
    assert json.loads((out / "ablation.json").read_text())["arms"] == ["resenc_oracle_roi", "full_oracle_roi"]
    for case_id, row in table(out / "full_oracle_roi").items():
        (roi,) = record(out / "full_oracle_roi", case_id)["roi"]
        middle = np.add(roi["origin"], (np.array(roi["size"]) - 1) / 2 * roi["spacing"])
        truth = sitk.Cast(read(cohort / case_id, case_id) != 0, sitk.sitkUInt8)
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(truth)
        # A cube's middle is a corner of the label's voxels.
        assert np.abs(np.subtract(middle, shape.GetCentroid(1))).max() < 3
        assert row["out_of_fold"] == "yes"


def train_on_held_out(runs: Path) -> None:
    for path in runs.glob("fine_resenc/*/best.ckpt"):
        stored = torch.load(path, weights_only=True)
        stored["hnseg"]["trained_on"] = CASES
        torch.save(stored, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda runs: shutil.rmtree(runs / "fine_segresnet" / "fine_segresnet_fold_1"),
            "every fine_segresnet network was trained on A-2; hnseg train",
        ),
        (lambda runs: shutil.rmtree(runs / "coarse_plainconv"), "no run of coarse in folds; hnseg train"),
        (
            lambda runs: next(runs.glob("localiser_plainconv/*_fold_0/score.json")).unlink(),
            "localiser_plainconv_fold_0; run the same training command again",
        ),
        (
            lambda runs: shutil.copytree(runs / "fine_resenc", runs / "fine_resenc_light"),
            "several trainings of fine resenc without enhancement",
        ),
        (train_on_held_out, "every fine_resenc network was trained on A-0"),
    ],
)
def test_runs_that_make_no_fair_comparison_are_refused_before_anything_is_computed(
    runs, cohort, tmp_path, spoil, message
):
    shutil.copytree(runs, tmp_path / "runs")
    spoil(tmp_path / "runs")
    assert message in ablation(tmp_path / "runs", cohort, tmp_path / "out")
    assert not list(tmp_path.glob("out/*/cases.csv"))


def test_a_case_that_the_runs_do_not_know_is_refused(runs, cohort, tmp_path):
    """It may be one they were trained on, under another name."""
    write_list(tmp_path / "cases.csv", cohort, {f"renamed-{name}": name for name in CASES})
    message = ablation(runs, tmp_path / "cases.csv", tmp_path / "out", "--arms", "resenc")
    assert "--data has renamed-A-0, on which no fine network was trained" in message


def write_list(path: Path, cohort: Path, names: dict[str, str]) -> None:
    """A CSV of cases by the names of their folders."""
    lines = [
        ",".join([case_id, *(f"{cohort}/{n}/{n}{part}.nii.gz" for part in ("__CT", "__PT", "")), "ward"])
        for case_id, n in names.items()
    ]
    path.write_text("\n".join(["case_id,ct,pet,label,center", *lines]))


def test_a_csv_few_head_masks_and_runs_on_all_cases(runs, cohort, tmp_path):
    """Neither localiser knows B-1 and B-3, which had no head mask; a run on all cases is no fold's."""
    write_list(tmp_path / "cases.csv", cohort, {name: name for name in CASES})
    shutil.copytree(runs, tmp_path / "runs")
    heads = tmp_path / "runs" / "localiser_plainconv"
    shutil.copytree(heads / "localiser_plainconv_fold_0", heads / "fold_all")
    config = json.loads((heads / "fold_all" / "config.json").read_text())
    write_config(heads / "fold_all", **config | {"fold": "all"})
    for fold, known in enumerate(("A-2", "A-0")):
        run = heads / f"localiser_plainconv_fold_{fold}"
        stored = torch.load(run / "best.ckpt", weights_only=True)
        stored["hnseg"]["trained_on"] = [known]
        torch.save(stored, run / "best.ckpt")
    out = tmp_path / "out"
    assert ablation(tmp_path / "runs", tmp_path / "cases.csv", out, "--arms", "resenc") is None
    assert {row["out_of_fold"] for row in table(out / "resenc").values()} == {"yes"}
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert [(row["center"], row["cases"]) for row in rows] == [(None, 4), ("ward", 4)]


def test_cases_that_cannot_be_segmented_end_it_before_the_table(runs, cohort, tmp_path):
    spoiled, out = tmp_path / "cohort", tmp_path / "out"
    shutil.copytree(cohort, spoiled)
    (spoiled / "A-2" / "A-2__PT.nii.gz").write_bytes(b"no image")
    refusal = ablation(runs, spoiled, out, "--arms", "resenc")
    assert f"not segmented: A-2 (reasons in {out / 'resenc' / 'cases.csv'})" in refusal
    assert {path.name for path in (out / "resenc").glob("*.nii.gz")} == {
        f"{name}.nii.gz" for name in CASES if name != "A-2"
    }
    assert not (out / "ablation.json").exists()
