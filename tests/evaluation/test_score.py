"""Folders of masks → scores, JSON and table; mistakes are refused by name."""

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from entry import hnseg, refused
from fabricate import volume
from rich.console import Console

from hnseg.errors import HnsegError
from hnseg.evaluation.score import Options, evaluate
from hnseg.evaluation.tables import print_scores
from hnseg.metrics.official import SCORES

SPACING, ORIGIN = (1.0, 1.0, 3.0), (-8.0, -8.0, -20.0)  # voxels of 3 mm³


def write(path: Path, labels: np.ndarray, spacing=SPACING, origin=ORIGIN, direction=None) -> Path:
    image = volume(labels, spacing, origin)
    image.SetDirection(np.ravel(np.eye(3) if direction is None else direction).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def masks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Three patients, (prediction, truth)."""
    empty, truth = np.zeros((12, 16, 16), np.uint8), np.zeros((12, 16, 16), np.uint8)
    truth[:4, :4, :4], truth[8:, 8:12, 8:12] = 1, 2
    shifted, false = np.where(truth == 2, truth, 0), np.where(truth == 2, truth, 0)
    shifted[:4, :4, 1:5] = 1
    return {
        "CHUM-001": (truth, truth),
        "CHUM-002": (shifted, truth),  # GTVp Dice 0.75, HD95 and shift 1 mm
        "MDA-001": (false, empty),  # no GTVp on either side, one false GTVn
    }


@pytest.fixture
def folders(tmp_path, masks):
    for case_id, (prediction, truth) in masks.items():
        write(tmp_path / "truth" / f"{case_id}.nii.gz", truth)
        write(tmp_path / "predictions" / f"{case_id}.nii.gz", prediction)
    return tmp_path / "truth", tmp_path / "predictions"


def printed(cohort):
    console = Console(record=True, width=120, file=StringIO())
    print_scores(cohort, console)
    return console.export_text()


def test_json_holds_official_scores_and_cases(folders):
    scores = json.loads(json.dumps(evaluate(*folders, Options(empty="skip")).to_json(), allow_nan=False))
    assert set(scores) == {"official", "cases"}
    official = scores["official"]
    assert official["gtvp_dsc"] == pytest.approx(1.75 / 2)
    by_policy = {"one": 2.75 / 3, "zero": 1.75 / 3, "skip": 1.75 / 2}
    assert official["gtvp_dsc_by_empty_policy"] == pytest.approx(by_policy)
    assert official["gtvp_both_empty"] == 1
    assert official["gtvn_dsc_agg"] == pytest.approx(4 * 64 / (5 * 64))
    assert official["gtvn_f1_agg"] == pytest.approx(4 / 5)
    assert [official[key] for key in ("tp", "fp", "fn", "cases")] == [2, 1, 0, 3]
    assert set(official["intervals"]) == set(SCORES)
    assert official["centers"]["CHUM"]["gtvp_dsc"] == pytest.approx(1.75 / 2)
    assert official["centers"]["MDA"]["gtvp_dsc"] is None
    assert list(scores["cases"]) == ["CHUM-001", "CHUM-002", "MDA-001"]
    shifted, false = scores["cases"]["CHUM-002"], scores["cases"]["MDA-001"]
    assert (shifted["gtvp_dice"], shifted["gtvp_ml"]) == pytest.approx((0.75, 0.192))
    assert (shifted["gtvp_hd95_mm"], shifted["gtvn_hd95_mm"]) == (1.0, 0.0)
    assert (false["gtvp_dice"], false["gtvn_dice"], false["gtvn_hd95_mm"]) == (None, 0.0, None)
    assert (false["tp"], false["fp"], false["fn"]) == (0, 1, 0)


def test_the_table_shows_scores_centres_and_policies(folders):
    text = printed(evaluate(*folders))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert re.findall(r"[\d.]+", rows["All"]) == ["3", "0.9167", "0.8000", "0.8000", "0.7917", "2", "1", "0"]
    assert re.findall(r"[\d.]+", rows["CHUM"]) == ["2", "0.8750", "1.0000", "1.0000", "0.9375", "2", "0", "0"]
    assert "GTVp in neither mask: 1 of 3 patients" in text
    assert "one 0.9167, zero 0.5833, skip 0.8750" in text


def test_options_change_the_lesions_and_the_spread_shows_it(tmp_path):
    corner = np.zeros((12, 16, 16), np.uint8)
    corner[3, 3, 3] = corner[4, 4, 4] = 2
    one = np.where(np.arange(12)[:, None, None] < 4, corner, 0).astype(np.uint8)
    write(tmp_path / "truth" / "A.nii.gz", corner)
    write(tmp_path / "predictions" / "A.nii.gz", one)
    folders = tmp_path / "truth", tmp_path / "predictions"
    official = evaluate(*folders, Options(connectivity=6)).official
    assert (official["tp"], official["fp"], official["fn"]) == (1, 0, 1)
    strict = evaluate(*folders, Options(threshold=0.5))
    assert (strict.official["tp"], strict.official["fp"], strict.official["fn"]) == (0, 1, 1)
    spread = strict.f1_spread
    assert spread[6, "greedy"] == pytest.approx(2 / 3)
    assert (spread[26, "greedy"], spread[26, "group"]) == (0.0, 1.0)


def test_hecktor_layout_metaimages_and_extra_predictions(tmp_path, masks):
    for case_id, (prediction, truth) in masks.items():
        write(tmp_path / "cohort" / case_id / f"{case_id}.nii.gz", truth)
        write(tmp_path / "cohort" / case_id / f"{case_id}__CT.nii.gz", truth)
        write(tmp_path / "cohort" / "heads" / f"{case_id}.nii.gz", truth)
        write(tmp_path / "predictions" / f"{case_id}.mha", prediction)
    write(tmp_path / "predictions" / "USZ-009.mha", prediction)
    report = evaluate(tmp_path / "cohort", tmp_path / "predictions")
    assert [case.case_id for case in report.cases] == list(masks)
    assert report.extra == ["USZ-009"]
    assert "USZ-009" in printed(report)


def test_a_csv_names_the_true_masks_and_their_centres(folders):
    truth, predictions = folders
    lines = [f"{name},{name}.nii.gz,{name}.nii.gz,{name}.nii.gz,ward" for name in ("CHUM-001", "MDA-001")]
    lines.append("CHUM-002,CHUM-002.nii.gz,CHUM-002.nii.gz,,ward")
    (truth / "cases.csv").write_text("\n".join(["case_id,ct,pet,label,center", *lines]))
    report = evaluate(truth / "cases.csv", predictions)
    assert {case.case_id: case.center for case in report.cases} == {"CHUM-001": "ward", "MDA-001": "ward"}
    assert report.extra == ["CHUM-002"]  # without a label


@pytest.mark.parametrize(
    "change", [{"spacing": (1.0, 1.0, 2.5)}, {"origin": (0.0, 0.0, 0.0)}, {"direction": np.diag([-1, -1, 1])}]
)
def test_another_grid_is_refused_by_name(folders, masks, change):
    truth, predictions = folders
    path = write(predictions / "CHUM-002.nii.gz", masks["CHUM-002"][0], **change)
    with pytest.raises(HnsegError, match=rf"{path}: is not on the CT's grid"):
        evaluate(truth, predictions)


def test_what_cannot_be_scored_is_refused_by_name(folders, masks, tmp_path):
    truth, predictions = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(HnsegError, match="empty: no case to score"):
        evaluate(tmp_path / "empty", predictions)
    with pytest.raises(HnsegError, match="nowhere: no such folder"):
        evaluate(truth, tmp_path / "nowhere")
    path = write(predictions / "MDA-001.mha", masks["MDA-001"][0])
    with pytest.raises(HnsegError, match=r"case MDA-001 also has .*MDA-001\."):
        evaluate(truth, predictions)
    for name in (path, predictions / "MDA-001.nii.gz", predictions / "CHUM-002.nii.gz"):
        name.unlink()
    with pytest.raises(HnsegError, match=r"predictions: .*2 of 3 cases \(CHUM-002, MDA-001\)"):
        evaluate(truth, predictions)


def test_missing_predictions_are_left_out_where_allowed_and_counted(folders, tmp_path):
    truth, predictions = folders
    (predictions / "CHUM-002.nii.gz").unlink()
    assert "--allow-missing" in refused(hnseg("evaluate", truth, predictions))
    done = hnseg("evaluate", truth, predictions, "--allow-missing", "--json", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr
    assert "left out without a prediction: 1 (CHUM-002)" in done.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["official"]["missing_predictions"] == ["CHUM-002"]
    assert sorted(scores["cases"]) == ["CHUM-001", "MDA-001"]


def test_masks_of_infer_given_as_ground_truth_are_called_so(folders):
    truth, predictions = folders
    (predictions / "cases.csv").write_text("case_id,status,seconds\n")
    assert "is what hnseg infer wrote" in hnseg("evaluate", predictions, truth).stderr
    assert "warning" not in hnseg("evaluate", truth, predictions).stderr


def test_scoring_does_not_wait_for_torch():
    code = "import sys, hnseg.evaluation.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
