"""`hnseg tune-postprocess`: what is chosen, what is written, and what must not be tuned on."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from entry import compose_job, load
from fabricate import label_image, volume, write_case
from members import DECISION, card, make_bundle

from hnseg.cli import main
from hnseg.errors import HnsegError
from hnseg.evaluation.tuning import pair_up, tune
from hnseg.inference.decision import Decision
from hnseg.inference.outcome import COLUMNS, Outcome
from hnseg.models.bundle import Bundle, write_rules

NAMES = [f"A-{n:02}" for n in range(12)]
RULES = {"fusion": "flat", "weights": {}, "rule": "half", "thresholds": {}, "way_back": "probabilities"}
RULES |= {"min_component_ml": 0, "node_suv_peak": 0, "mirror": False, "cover": "one", "fallback": "chain"}


def pet() -> sitk.Image:
    """SUV 1, and 8 about the two true nodes of 0.096 ml."""
    suv = np.ones((30, 40, 40), np.float32)
    suv[16:26, 4:18, 4:28] = 8
    return volume(suv, (2, 2, 3))


def write_predictions(folder: Path, change: Callable[[np.ndarray], None], **columns: str) -> None:
    """Masks that are the truth but for `change`, and the table that infer.py writes with them."""
    folder.mkdir()
    labels = sitk.GetArrayFromImage(label_image())
    change(labels)
    made_from = ""
    if (folder.parent / "bundle").exists():
        made_from = f"{Bundle.load(folder.parent / 'bundle').identity}-0"
    rows = []
    for name in NAMES:
        sitk.WriteImage(volume(labels, (2, 2, 3)), str(folder / f"{name}.nii.gz"))
        done = Outcome(name, "ok", {"fine": 1.0}, unseen=True, rules=json.dumps(RULES), made_from=made_from)
        rows.append(done.row | columns)
    write_table(folder, rows)


def write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in COLUMNS if name in rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def false_lesions(labels: np.ndarray) -> None:
    """A GTVp of 0.096 ml, and a cold node of 0.768 ml, larger than the true ones."""
    labels[2:4, 30:32, 30:32] = 1
    labels[2:6, 10:14, 30:34] = 2


def nothing_false(labels: np.ndarray) -> None:
    """The true GTVp but for a plane."""
    labels[10, 10:14, 10:14] = 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    for name in NAMES:
        write_case(folder, name, pet=pet())
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    rules = DECISION | {"min_component_ml": 0.05, "node_suv_peak": None}
    return make_bundle(tmp_path, card("fine", "segresnet", decision=rules)).path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit status of `hnseg tune-postprocess arguments`."""
    monkeypatch.setattr(sys, "argv", ["hnseg", "tune-postprocess", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_clearly_helps_is_chosen_and_no_more(bundle: Path, root: Path, tmp_path: Path) -> None:
    """Floors of 0.1 to 0.5 ml drop the false GTVp alike; only uptake parts the false node from the true."""
    write_predictions(tmp_path / "found", false_lesions)
    tuning = tune(Bundle.load(bundle), tmp_path / "found", root)
    assert tuning.chosen.rules == {"min_component_ml": {"GTVp": 0.1, "GTVn": 0.0}, "node_suv_peak": 1.5}
    before, after = tuning.nothing.scores, tuning.chosen.scores
    assert before["gtvp_dsc"] == pytest.approx(2 * 64 / (64 + 72))
    assert before["gtvn_dsc_agg"] == pytest.approx(2 * 16 / (16 + 80))
    assert before["gtvn_f1_agg"] == pytest.approx(4 / 5)
    assert (after["gtvp_dsc"], after["gtvn_dsc_agg"], after["gtvn_f1_agg"]) == (1, 1, 1)
    assert tuning.cross_validated == pytest.approx((1, 1, 1))
    assert tuning.cases == 12
    assert tuning.present.gtvp.ml == tuning.present.gtvn.ml == 0.05
    assert tuning.present.scores == before  # neither is smaller than that


def test_another_bundles_predictions_are_refused(bundle: Path, root: Path, tmp_path: Path) -> None:
    write_predictions(tmp_path / "found", false_lesions)
    other = make_bundle(tmp_path / "other", card("fine", "segresnet", cte=True))
    with pytest.raises(HnsegError, match=r"found: another bundle than .*other.* made A-00.*; make them anew"):
        tune(other, tmp_path / "found", root)
    members = Bundle.load(bundle)
    write_rules(members, members.decision | {"rule": "argmax"}, "")
    assert Bundle.load(bundle).identity == members.identity  # its rules are what tuning changes


def test_where_nothing_helps_nothing_is_dropped(bundle: Path, root: Path, tmp_path: Path) -> None:
    write_predictions(tmp_path / "found", nothing_false)
    tuning = tune(Bundle.load(bundle), tmp_path / "found", root)
    assert tuning.chosen.rules == {"min_component_ml": {"GTVp": 0.0, "GTVn": 0.0}, "node_suv_peak": None}
    assert tuning.chosen.scores == tuning.nothing.scores
    assert tuning.cross_validated == pytest.approx((2 * 48 / (48 + 64), 1, 1))


def test_the_bundle_gets_the_rules_and_its_card_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    root: Path,
    tmp_path: Path,
) -> None:
    write_predictions(tmp_path / "found", false_lesions)
    (bundle / "cache").mkdir()
    (bundle / "cache" / "network.xml").write_text("converted")
    untouched = contents(bundle)
    assert command(monkeypatch, bundle, tmp_path / "found", root, "--dry-run") == 0
    assert contents(bundle) == untouched
    assert "chosen" in capsys.readouterr().out
    assert command(monkeypatch, bundle, tmp_path / "found", root) == 0
    said = capsys.readouterr()
    assert f"{bundle}: rules written" in said.out.replace("\n", "")
    changed = {name for name, content in contents(bundle).items() if untouched[name] != content}
    assert changed == {"bundle.yaml", "README.md"}
    decision = Bundle.load(bundle).decision
    tuned = {"min_component_ml": {"GTVp": 0.1, "GTVn": 0.0}, "node_suv_peak": 1.5}
    assert decision == DECISION | tuned
    assert Decision.from_dict(decision, ["GTVp", "GTVn"]).floors(["GTVp", "GTVn"]) == [0.1, 0.0]
    text = (bundle / "README.md").read_text()
    assert "node_suv_peak: 1.5" in text
    assert "12 cases out of fold" in text
    assert (
        yaml.safe_load(untouched["bundle.yaml"])["members"]
        == yaml.safe_load((bundle / "bundle.yaml").read_text())["members"]
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"unseen": "no"}, r"found: made by networks trained on A-00, A-01, .* and 7 more; make them anew"),
        ({"unseen": ""}, "made by networks trained on A-00"),
        ({"status": "error"}, "found: no finished prediction of A-00"),
        ({"fine_s": ""}, "found: not the fine stage's masks: A-00"),
        ({"rules": ""}, r"cases\.csv: does not say by which rules A-00 was decided"),
        ({"rules": "[1]"}, r"cases\.csv: does not say by which rules A-00 was decided"),
        ({"rules": "null"}, r"cases\.csv: does not say by which rules A-00 was decided"),
        (
            {"rules": json.dumps(RULES | {"min_component_ml": {"GTVn": 0.1}})},
            r"A-00 was made with decision\.min_component_ml=.*GTVn.*0\.1.*make it anew with python infer\.py",
        ),
        ({"rules": json.dumps(RULES | {"node_suv_peak": 2.5})}, r"made with .*decision\.node_suv_peak=2\.5"),
        ({"rules": json.dumps(RULES | {"rule": "argmax"})}, "made with rule=argmax, the bundle has half"),
        ({"rules": json.dumps(RULES | {"mirror": True})}, "made with mirror=True, the bundle has False"),
    ],
)
def test_predictions_that_would_mislead_are_refused(
    root: Path, tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    write_predictions(tmp_path / "found", nothing_false, **columns)
    with pytest.raises(HnsegError, match=message) as caught:
        pair_up(root, tmp_path / "found", Decision())
    assert "\n" not in str(caught.value)


def test_one_bad_case_is_enough(root: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    write_predictions(found, nothing_false)
    with (found / "cases.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for change, message in (
        ({"unseen": "no"}, "trained on A-05;"),
        ({"status": "unfinished"}, "no finished prediction of A-05;"),
        ({"rules": json.dumps(RULES | {"node_suv_peak": 1})}, "A-05 was made with"),
    ):
        write_table(found, [row | (change if row["case_id"] == "A-05" else {}) for row in rows])
        with pytest.raises(HnsegError, match=message):
            pair_up(root, found, Decision())
    write_table(found, [{key: row[key] for key in row if key != "rules"} for row in rows])
    with pytest.raises(HnsegError, match="does not say by which rules A-00"):
        pair_up(root, found, Decision())
    (found / "A-07.nii.gz").unlink()
    with pytest.raises(HnsegError, match="no finished prediction of A-07;"):
        pair_up(root, found, Decision())
    (found / "cases.csv").unlink()
    with pytest.raises(
        HnsegError, match=r"cases\.csv: no such file, so nobody knows how the masks were made"
    ):
        pair_up(root, found, Decision())


def test_too_few_cases_or_no_truth(root: Path, tmp_path: Path) -> None:
    lines = [f"{name},{root}/{name}/{name}__CT.nii.gz,{root}/{name}/{name}__PT.nii.gz" for name in NAMES]
    (tmp_path / "few.csv").write_text("\n".join(["case_id,ct,pet", *lines[:9]]))
    with pytest.raises(HnsegError, match=r"few\.csv: 9 cases; tuning on fewer than 10"):
        pair_up(tmp_path / "few.csv", tmp_path, Decision())
    (tmp_path / "all.csv").write_text("\n".join(["case_id,ct,pet", *lines]))
    with pytest.raises(HnsegError, match=r"all\.csv: no true mask of A-00"):
        pair_up(tmp_path / "all.csv", tmp_path, Decision())


def test_a_bundle_without_a_fine_stage_is_refused(root: Path, tmp_path: Path) -> None:
    coarse = make_bundle(tmp_path, card("coarse", "plainconv"))
    with pytest.raises(HnsegError, match="has no fine member that finds GTVp and GTVn"):
        tune(coarse, tmp_path, root)


def test_from_infer_to_tuned_rules_as_typed(
    pointwise: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Two folds that call every hot spot a node: the true one of SUV 8, and a fainter one of SUV 3."""
    node = {"weights": [[0.0, 0.0], [0.0, 0.0], [0.0, 400.0]], "biases": [0.0, -500.0, -40.0]}
    grid = {"placement": "scan", "size": [20] * 3, "spacing": [4.0] * 3}
    rules = DECISION | {"min_component_ml": 0.1, "node_suv_peak": None}
    folds = [
        card("fine", "pointwise", node, grid=grid, decision=rules, name=f"fold_{k}", trained_on=NAMES[k:10:2])
        for k in range(2)
    ]
    bundle = make_bundle(tmp_path, *folds).path
    suv, truth = np.ones((30, 40, 40), np.float32), np.zeros((30, 40, 40), np.uint8)
    suv[8:14, 10:18, 10:18], truth[8:14, 10:18, 10:18] = 8, 2
    suv[18:24, 24:32, 24:32] = 3
    for name in NAMES[:10]:
        write_case(tmp_path / "cohort", name, pet=volume(suv, (2, 2, 3)), label=volume(truth, (2, 2, 3)))
    out, cpu = tmp_path / "out", ["trainer.device=cpu", "trainer.precision=float32"]
    places = [f"cases={tmp_path / 'cohort'}", f"bundle={bundle}", f"out={out}", "unseen=true", *cpu]

    def infer(*arguments: str) -> None:
        load("infer").main(compose_job("infer", *places, *arguments))

    infer()
    assert command(monkeypatch, bundle, out, tmp_path / "cohort") == 2
    assert "was made with decision.min_component_ml=0.1" in capsys.readouterr().err
    infer("decision.min_component_ml=0", "decision.node_suv_peak=0")
    assert command(monkeypatch, bundle, out, tmp_path / "cohort") == 0
    assert Bundle.load(bundle).decision["node_suv_peak"] in (3.0, 4.0)
    infer()
    for name in NAMES[:10]:
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{name}.nii.gz")))
        assert mask[8:14, 10:18, 10:18].any()
        assert not mask[18:24, 24:32, 24:32].any()
