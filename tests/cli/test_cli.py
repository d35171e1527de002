"""`hnseg` as a user types it: statuses, one-line errors, and results in files."""

import json
import subprocess
import sys
from collections.abc import Sequence

import SimpleITK as sitk
from entry import hnseg, refused, run
from fabricate import ct_image, label_image, pet_image, write_case

from hnseg.cli import app

HEAVY = "{'torch', 'SimpleITK', 'monai', 'matplotlib', 'scipy'} & set(sys.modules)"


def imported(*commands: Sequence[str]) -> tuple[str, str, str]:
    """What commands print on stdout and stderr in one process, and the heavy packages that it imported."""
    code = (
        "import sys\nfrom hnseg.cli import main\n"
        f"for command in {commands!r}:\n"
        "    sys.argv = ['hnseg', *command]\n"
        "    try: main()\n"
        "    except SystemExit as end: print('status', end.code)\n"
        f"print('heavy:', {HEAVY})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    out, _, heavy = done.stdout.rpartition("heavy: ")
    return out, done.stderr, heavy.strip()


def test_help_lists_every_command_in_groups_without_heavy_imports():
    out, _, heavy = imported(["--help"])
    assert heavy == "set()"
    groups = [*map(out.index, ("─ Data ─", "─ Train ─", "─ Infer ─", "─ Evaluate ─", "─ Share ─"))]
    assert groups == sorted(groups)
    assert "…" not in out
    for command in app.registered_commands:
        assert f"│ {command.name or command.callback.__name__} " in out


WRONG = [
    ["export", "nowhere", "--out", "bundle"],
    ["evaluate", "nowhere", "nowhere"],
    ["report", "nowhere"],
    ["ablation", "nowhere", "--data", "nowhere", "--out", "out"],
    ["tune-postprocess", "nowhere", "nowhere", "nowhere"],
    ["import-nnunet", "nowhere", "--out", "bundle"],
    ["import-monai", "nowhere", "--out", "bundle"],
    ["audit", "nowhere"],
    ["cache", "nowhere"],
    ["runs", "nowhere"],
    ["profile", "data.root=nowhere"],
    ["train", "data.root=nowhere"],
    ["infer", "cases=nowhere", "bundle=nowhere", "out=out"],
    ["infer", "--ct", "nowhere", "--pet", "nowhere", "--bundle", "nowhere", "--out", "out"],
]


def test_a_wrong_path_is_refused_before_anything_heavy_is_imported():
    out, err, heavy = imported(*WRONG)
    refusals = [line for line in err.splitlines() if "error: nowhere: no such f" in line]
    assert len(refusals) == out.count("status 2\n") == len(WRONG)
    assert heavy == "set()"


def test_nnunets_flags_are_answered_with_the_call_that_was_meant():
    line = refused(hnseg("infer", "-i", "scans", "-o", "masks"))
    assert line.endswith("hnseg infer cases=scans out=masks bundle=DIR")


def test_configuration_files_copied_out_are_used(tmp_path):
    assert hnseg("conf", tmp_path / "mine").returncode == 0
    (tmp_path / "mine" / "conf" / "recipe" / "ours.yaml").write_text("defaults: [paper]\nema: 0.5\n")
    (tmp_path / "mine" / "conf" / "local.yaml").write_text("data: {root: /scans}\n")
    call = ["train", "recipe=ours", "--cfg", "job"]
    done = run("hnseg", *call, cwd=tmp_path, HNSEG_CONF="mine")
    assert "ema: 0.5\n" in done.stdout
    assert "root: /scans\n" in done.stdout
    refused(hnseg("conf", tmp_path / "mine"))
    done = run("hnseg", "train", "--cfg", "job", cwd=tmp_path, HNSEG_DATA="/cohort")
    assert "root: /cohort\n" in done.stdout


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    done = hnseg("audit", tmp_path / "nowhere")
    assert refused(done).startswith("hnseg: error: ")
    assert done.stdout == ""


def test_an_unknown_option_is_status_2(tmp_path):
    done = hnseg("evaluate", tmp_path, tmp_path, "--empty", "two")
    assert done.returncode == 2
    assert "'one', 'zero'" in done.stderr


def test_audit_of_a_sound_cohort(tmp_path):
    write_case(tmp_path / "data", "A-1")
    write_case(tmp_path / "data", "B-1", seed=1)
    result = tmp_path / "audit.json"
    done = hnseg("audit", tmp_path / "data", "--json", result, "--workers", 1)
    assert done.returncode == 0
    assert "2 cases, 2 usable" in done.stdout
    found = json.loads(result.read_text())
    assert [one["case"]["case_id"] for one in found["cases"]] == ["A-1", "B-1"]
    assert found["cases"][0]["components"] == {"GTVp": 1, "GTVn": 2}
    assert found["orphans"] == []


def test_audit_of_an_unusable_cohort_is_status_1(tmp_path):
    write_case(tmp_path, "swapped", ct=pet_image(), pet=ct_image(), label=None)
    done = hnseg("audit", tmp_path, "--workers", 1)
    assert done.returncode == 1
    assert "look swapped" in done.stdout


def test_audit_takes_a_csv(tmp_path):
    write_case(tmp_path, "A")
    (tmp_path / "cases.csv").write_text("case_id,ct,pet\nA,A/A__CT.nii.gz,A/A__PT.nii.gz\n")
    assert hnseg("audit", tmp_path / "cases.csv").returncode == 0


def test_evaluate_scores_a_perfect_prediction(tmp_path):
    for folder in ("truth", "predictions"):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(label_image(), str(tmp_path / folder / "A-1.nii.gz"))
    result = tmp_path / "scores.json"
    assert hnseg("evaluate", tmp_path / "truth", tmp_path / "predictions", "--json", result).returncode == 0
    official = json.loads(result.read_text())["official"]
    assert (official["gtvp_dsc"], official["gtvn_dsc_agg"], official["gtvn_f1_agg"]) == (1, 1, 1)
    assert (official["tp"], official["fp"], official["fn"]) == (2, 0, 0)


def test_evaluate_draws_each_case(tmp_path):
    folder = write_case(tmp_path / "data", "A-1")
    options = ("--overlays", tmp_path / "png")
    assert hnseg("evaluate", tmp_path / "data", tmp_path / "data", *options).returncode == 0
    assert (tmp_path / "png" / "A-1.png").read_bytes().startswith(b"\x89PNG")
    (folder / "A-1__PT.nii.gz").unlink()
    assert "A-1__PT.nii.gz" in refused(hnseg("evaluate", tmp_path / "data", tmp_path / "data", *options))


def test_phantom_makes_a_cohort_that_the_audit_accepts(tmp_path):
    cohort = tmp_path / "phantom"
    assert hnseg("phantom", cohort, "--cases", 2, "--seed", 0, "--workers", 1).returncode == 0
    assert hnseg("audit", cohort, "--workers", 1).returncode == 0
