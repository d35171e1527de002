"""infer.py as typed: mistakes told at once, bad cases reported while the others finish, the exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from entry import compose_job, hnseg, load, run, write_cohort
from fabricate import ct_image, write_case
from members import DECISION, card, make_bundle
from results import record

from hnseg.errors import HnsegError
from hnseg.imaging.case import read_cases
from hnseg.training.cohort import find_coarse

WHOLE = {"placement": "scan", "size": [16] * 3, "spacing": [6.0] * 3}
CPU = ["trainer.device=cpu", "trainer.precision=float32"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    one = card("fine", "segresnet", grid=WHOLE, trained_on=["A-1"])
    other = card("fine", "plainconv", grid=WHOLE, trained_on=["A-2"])
    return make_bundle(tmp_path, one, other).path


TABLES = ("cases.csv", "lesions.csv")


def records(*names: str) -> set[str]:
    return {f"{name}.json" for name in names}


def infer(*arguments: str) -> None:
    load("infer").main(compose_job("infer", *arguments, *CPU))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("last_stage=localiser", "last_stage=localiser.*no localiser member, only fine"),
        ("overwrite=no", "overwrite=no"),
        ("cases=nowhere", "nowhere: no such folder or CSV"),
        ("shard=4/4", "shard=4/4: write K/N"),
        ("decision.weights={resenc:2}", r"decision\.weights: no model resenc in .*plainconv, segresnet"),
        ("decision.thresholds={GTVp:0.9}", r"decision\.thresholds=.*set decision\.rule=argmax"),
        (
            "decision.weights={segresnet:2} decision.fusion=authors",
            r"decision\.weights=.*set decision\.fusion=flat",
        ),
        ("bundle=nowhere", r"bundle=nowhere: no bundle\.yaml"),
    ],
)
def test_impossible_settings_are_told(bundle: Path, tmp_path: Path, change: str, message: str) -> None:
    write_case(tmp_path / "scans", "A-1")
    given = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'out'}"]
    with pytest.raises(HnsegError, match=message):
        load("infer").main(compose_job("infer", *given, *CPU, *change.split()))
    assert not (tmp_path / "out").exists()


def test_the_same_call_answers_before_it_imports_torch_and_notices_what_changes(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "scans", "A-3")
    call = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'out'}"]
    infer(*call)
    code = "import sys; from hnseg.cli import main; sys.argv[0] = 'hnseg'\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "infer", *call, *CPU]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 of 1 cases segmented" in done.stdout
    assert done.stdout.endswith("False\n")
    record_before = (tmp_path / "out" / "A-3.json").stat().st_mtime_ns
    for change in (
        lambda: (tmp_path / "out" / "A-3.nii.gz").unlink(),
        lambda: os.utime(tmp_path / "scans" / "A-3" / "A-3__PT.nii.gz", ns=(1, 1)),
    ):
        change()
        infer(*call)
        after = (tmp_path / "out" / "A-3.json").stat().st_mtime_ns
        assert after > record_before
        record_before = after
    capsys.readouterr()


def test_one_study_is_segmented_as_in_a_list(bundle: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A-3")
    ct, pet = (tmp_path / "scans" / "A-3" / f"A-3__{name}.nii.gz" for name in ("CT", "PT"))
    infer(f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'list'}")
    options = ["--ct", ct, "--pet", pet, "--bundle", bundle, "--out", tmp_path / "one"]
    assert hnseg("infer", *options, *CPU).returncode == 0
    masks = [sitk.ReadImage(str(tmp_path / out / "A-3.nii.gz")) for out in ("list", "one")]
    assert sitk.Hash(masks[0]) == sitk.Hash(masks[1])
    with pytest.raises(HnsegError, match=r"cases=PATH, or ct=FILE and pet=FILE"):
        infer(f"ct={ct}", f"bundle={bundle}", "out=out")


def test_a_bad_case_is_reported_and_the_others_finish(bundle: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A-1")
    write_case(tmp_path / "scans", "A-2", pet=None)
    places = ["cases=scans", f"bundle={bundle}", "out=out", "backend=torch"]
    done = run("infer.py", *places, *CPU, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.strip() == "1 of 2 cases segmented: out"
    assert "not segmented: A-2" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "A-1.nii.gz",
        *TABLES,
        *records("A-1", "A-2"),
    }
    assert sitk.ReadImage(str(tmp_path / "out" / "A-1.nii.gz")).GetSize() == ct_image().GetSize()
    assert {path.name for path in tmp_path.iterdir()} == {
        "runs",
        "bundle",
        "scans",
        "out",
    }  # Hydra left nothing


def test_a_rerun_says_what_it_skips_and_tries_again_what_failed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "scans", "A-1")
    write_case(tmp_path / "scans", "A-2", pet=None)
    places = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'out'}", "format=mha"]
    for skipped in ("", " (1 skipped, finished before; overwrite=true segments all)"):
        with pytest.raises(SystemExit):
            infer(*places)
        said = capsys.readouterr()
        assert said.out == f"1 of 2 cases segmented: {tmp_path / 'out'}{skipped}\n"
        assert "not segmented: A-2" in said.err
    with pytest.raises(SystemExit):
        infer(*places, "overwrite=true")
    assert "skipped" not in capsys.readouterr().out
    assert sitk.ReadImage(str(tmp_path / "out" / "A-1.mha")).GetSize() == ct_image().GetSize()


def test_ray_where_it_is_not_installed_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "scans", "A-1")
    monkeypatch.setitem(sys.modules, "ray", None)
    given = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'out'}"]
    with pytest.raises(HnsegError, match=r"engine=ray: Ray is not installed; pip install 'hnseg\[ray\]'"):
        infer(*given, "engine=ray", "engine.workers=2")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A-0, B-1, A-2, B-3 with heads."""
    return write_cohort(tmp_path / "cohort")


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Coarse members of two folds: one trained on the cases of centre A, the other on those of B."""
    return make_bundle(
        tmp_path,
        card("coarse", "plainconv", name="fold_0", trained_on=["A-0", "A-2"]),
        card("coarse", "plainconv", name="fold_1", trained_on=["B-1", "B-3"]),
    ).path


def test_one_command_makes_coarse_predictions_that_the_fine_stage_may_train_on(
    cohort: Path, folds: Path, tmp_path: Path
) -> None:
    out = tmp_path / "coarse"
    places = [f"cases={cohort}", f"bundle={folds}", f"out={out}", f"head_masks={cohort / 'heads'}"]
    infer(*places, "last_stage=coarse")
    with pytest.raises(HnsegError, match="made by networks trained on A-0, A-2, B-1, B-3"):
        find_coarse(out, read_cases(cohort), train_roi="coarse")
    infer(*places, "last_stage=coarse", "out_of_fold=true")
    assert find_coarse(out, read_cases(cohort), train_roi="coarse") == out


def test_a_case_without_a_member_out_of_fold_is_reported_and_the_others_finish(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_bundle(tmp_path / "one", card("coarse", "plainconv", trained_on=["A-0", "A-2"])).path
    places = [f"cases={cohort}", f"bundle={one}", f"out={tmp_path / 'out'}", f"head_masks={cohort / 'heads'}"]
    with pytest.raises(SystemExit) as stopped:
        infer(*places, "last_stage=coarse", "out_of_fold=true")
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "2 of 4 cases segmented" in said.out
    assert "not segmented: A-0, A-2" in said.err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"B-1.nii.gz", "B-3.nii.gz", *TABLES, *records("A-0", "A-2", "B-1", "B-3")}


def test_the_head_stage_labels_the_scans_that_have_no_mask(cohort: Path, tmp_path: Path) -> None:
    """Drawn masks are left as they are, whatever becomes of the others, and none left to make is told."""
    heads = cohort / "heads"
    (heads / "B-1.nii.gz").unlink()
    drawn = {path.name: path.read_bytes() for path in heads.iterdir()}
    bundle = make_bundle(tmp_path, card("localiser", "plainconv", trained_on=["A-0", "A-2", "B-3"])).path
    places = [f"cases={cohort}", f"bundle={bundle}", f"out={heads}", "last_stage=localiser"]
    infer(*places, f"head_masks={heads}")
    assert {name: (heads / name).read_bytes() for name in drawn} == drawn
    assert (heads / "B-1.nii.gz").exists()
    with pytest.raises(HnsegError, match=r"head_masks=.*each of the 4 cases has a mask"):
        infer(*places, f"head_masks={heads}")
    with pytest.raises(SystemExit):  # of the four, three masks would have to be replaced
        infer(*places)
    assert {name: (heads / name).read_bytes() for name in drawn} == drawn


def test_head_masks_may_be_metaimages(cohort: Path, tmp_path: Path) -> None:
    """The coarse ROI hangs below them, as below the same masks as NIfTI; there is no localiser to ask."""
    bundle = make_bundle(tmp_path, card("coarse", "plainconv")).path
    places = [f"cases={cohort}", f"bundle={bundle}", "last_stage=coarse"]
    infer(*places, f"head_masks={cohort / 'heads'}", f"out={tmp_path / 'nifti'}")
    (tmp_path / "heads").mkdir()
    for path in (cohort / "heads").iterdir():
        mask = sitk.ReadImage(str(path))
        sitk.WriteImage(mask, str(tmp_path / "heads" / path.name.replace(".nii.gz", ".mha")))
    infer(*places, f"head_masks={tmp_path / 'heads'}", f"out={tmp_path / 'mha'}")
    masks = [path.name for path in (tmp_path / "nifti").glob("*.nii.gz")]
    assert len(masks) == 4
    for name in masks:
        assert (tmp_path / "mha" / name).read_bytes() == (tmp_path / "nifti" / name).read_bytes()


def test_a_folder_of_heads_that_is_not_there_is_told(bundle: Path, cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(HnsegError, match="head_masks=nowhere: no such folder"):
        infer(f"cases={cohort}", f"bundle={bundle}", f"out={tmp_path / 'out'}", "head_masks=nowhere")


def test_an_arm_of_the_ensemble_is_chosen_by_name(bundle: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A-3")
    given = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'out'}"]
    infer(*given, "arms=segresnet")
    with pytest.raises(HnsegError, match=r"arms=full.*no fine member resenc with enhancement"):
        infer(*given, "arms=full")


def test_a_call_may_have_rules_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A node of SUV 12 and about 2 ml, and a bundle that drops such: one call follows other rules."""
    node = {"weights": [[0.0, 0.0], [0.0, 0.0], [0.0, 400.0]], "biases": [0.0, -500.0, -80.0]}
    grid = {"placement": "scan", "size": [32] * 3, "spacing": [3.0] * 3}
    rules = DECISION | {"min_component_ml": 9.0, "node_suv_peak": 20.0}
    bundle = make_bundle(tmp_path, card("fine", "pointwise", node, grid=grid, decision=rules)).path
    write_case(tmp_path / "scans", "A-1")
    out = tmp_path / "out"
    places = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={out}"]

    def voxels(*decision: str) -> int:
        infer(*places, *decision)
        return int(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "A-1.nii.gz"))).astype(bool).sum())

    assert voxels() == 0
    assert voxels("decision.node_suv_peak=0") == 0  # the floor is still the bundle's
    whole = voxels("decision.min_component_ml=0", "decision.node_suv_peak=0")
    assert whole > 100
    rules = record(out, "A-1")["rules"]
    assert rules.items() >= {"min_component_ml": 0, "node_suv_peak": 0, "rule": "half"}.items()
    assert "skipped" not in capsys.readouterr().out
    by_class = ["decision.min_component_ml={GTVp:9,GTVn:0.1}", "decision.node_suv_peak=11"]
    assert voxels(*by_class) == voxels(*by_class) == whole
    assert "1 skipped" in capsys.readouterr().out
    with pytest.raises(HnsegError, match=r"^decision\.min_component_ml=-1"):
        infer(*places, "decision.min_component_ml=-1")
