"""The demo's own commands on a smaller cohort and shorter trainings: from nothing to scores and pictures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from entry import run
from makefile import commands

pytestmark = pytest.mark.slow

# Fewer cases and steps than `make demo`; everything else is the Makefile's.
SMALLER = {"80": "6", "12": "2"}
SHORTER = ["training.epochs=2", "training.iterations=2", "training.validate_every=1"]


def demo_commands() -> list[list[str]]:
    """The commands of `make demo`, on less."""
    smaller = [[SMALLER.get(word, word) for word in command] for command in commands("demo")]
    return [command + SHORTER * (command[:2] == ["hnseg", "train"]) for command in smaller]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `make demo` leaves."""
    folder = tmp_path_factory.mktemp("demo")
    for script, *arguments in demo_commands():
        done = run(script, *arguments, cwd=folder)
        assert done.returncode == 0, f"{script} {' '.join(arguments)}\n{done.stderr}"
    return folder / "runs" / "demo"


def test_every_stage_and_fold_was_trained(demo: Path) -> None:
    runs = {str(path.parent.relative_to(demo / "train")) for path in demo.glob("train/*/*/score.json")}
    fine = {f"fine_{model}/fold_{fold}" for model in ("resenc_cte", "segresnet") for fold in (0, 1)}
    assert runs == {"localiser_plainconv/fold_all", "coarse_plainconv/fold_all", *fine}
    for name in runs:
        files = {path.name for path in (demo / "train" / name).iterdir()}
        assert {"config.json", "best.ckpt", "last.ckpt", "metrics.csv", "split.json", "curves.png"} <= files


def test_the_members_are_the_papers_kinds(demo: Path) -> None:
    from hnseg.models.bundle import Bundle

    members = Bundle.load(demo / "bundle").members
    fine = {(m.card.model, m.card.network["in_channels"]) for m in members if m.stage.name == "fine"}
    assert fine == {("resenc", 4), ("segresnet", 2)}
    assert len(members) == 6


def test_every_held_out_case_has_a_mask_on_its_cts_grid_and_a_picture(demo: Path) -> None:
    cases = sorted(
        path.name for path in (demo / "data" / "test").iterdir() if (path / f"{path.name}.nii.gz").exists()
    )
    assert len(cases) == 2
    for name in cases:
        mask = sitk.ReadImage(str(demo / "predictions" / f"{name}.nii.gz"))
        ct = sitk.ReadImage(str(demo / "data" / "test" / name / f"{name}__CT.nii.gz"))
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert mask.GetSize() == ct.GetSize()
        np.testing.assert_allclose(mask.GetOrigin(), ct.GetOrigin())
        np.testing.assert_allclose(mask.GetDirection(), ct.GetDirection())
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}
        assert (demo / "overlays" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (demo / "predictions" / "cases.csv").open(newline="") as file:
        assert {row["case_id"]: row["status"] for row in csv.DictReader(file)} == dict.fromkeys(cases, "ok")


def test_scores_have_the_documented_form(demo: Path) -> None:
    scores = json.loads((demo / "scores.json").read_text())
    assert {"gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg", "tp", "fp", "fn"} <= scores["official"].keys()
    for name in ("gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg"):
        assert 0 <= scores["official"][name] <= 1
    assert set(scores["cases"]) == {path.stem for path in (demo / "overlays").glob("*.png")}


def test_the_same_training_command_again_is_over_at_once(demo: Path) -> None:
    commands = [command for command in demo_commands() if command[:2] == ["hnseg", "train"]]
    done = run(*commands[-1], cwd=demo.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 4
