"""`make reproduce` on a smaller cohort and with shorter trainings, its sweep killed and started again.

The table, W&B's files and the report must agree, to the last digit, with the scores of the saved masks.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
from entry import run
from makefile import commands
from scores_by_hand import official_scores
from wandb_files import offline_runs

from hnseg.metrics.official import SCORES

pytestmark = pytest.mark.slow

ARMS = ["full", "no_cte", "srn_cte", "resenc_cte", "resenc"]
NETWORKS = ["localiser_plainconv", "coarse_plainconv"] + [
    f"fine_{model}{cte}" for model in ("resenc", "segresnet") for cte in ("", "_cte")
]
RUNS = {f"{network}/fold_{fold}" for network in NETWORKS for fold in (0, 1)}
KILLED = "coarse_plainconv/fold_1"
SHORTER = ["training.epochs=2", "training.iterations=32", "training.validate_every=1"]
LAST_DIGIT = 1e-13  # relative: sums of floating-point numbers may round another way than exact fractions

Row = dict[str, Any]


def kill_in(run_dir: Path, arguments: Sequence[str], cwd: Path) -> None:
    """Trains until a run has its first checkpoint, and kills the sweep with all its processes there."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (run_dir / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def wandb_ids(train: Path) -> dict[str, set[str]]:
    """The ids of W&B's runs by run folder."""
    found: dict[str, set[str]] = {}
    for path in train.glob("*/*/wandb/offline-run-*"):
        found.setdefault(str(path.parents[1].relative_to(train)), set()).add(path.name.rpartition("-")[2])
    return found


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The folder that `make reproduce` leaves, what the sweep said, and W&B's ids when it was killed."""
    cwd = tmp_path_factory.mktemp("reproduce")
    folder = cwd / "runs" / "reproduce"
    phantom, sweep, ablation = commands("reproduce")
    phantom[phantom.index("--cases") + 1] = "8"
    sweep += SHORTER
    ablation.append("backend=torch")  # OpenVINO is no part of what the target installs
    done = run(*phantom, cwd=cwd)
    assert done.returncode == 0, done.stderr
    kill_in(folder / "train" / KILLED, sweep, cwd)
    before = wandb_ids(folder / "train")
    swept = run(*sweep, cwd=cwd)
    assert swept.returncode == 0, swept.stderr
    done = run(*ablation, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return {"folder": folder, "before": before, "said": swept.stdout + swept.stderr}


@pytest.fixture(scope="module")
def out(reproduced: dict[str, Any]) -> Path:
    """The ablation's folder."""
    return reproduced["folder"] / "ablation"


@pytest.fixture(scope="module")
def rows(out: Path) -> list[Row]:
    """Of ablation.json."""
    return json.loads((out / "ablation.json").read_text())["rows"]


def test_the_killed_sweep_finishes_with_each_run_once(reproduced: dict[str, Any]) -> None:
    train, before = reproduced["folder"] / "train", reproduced["before"]
    assert set(before) == {
        "localiser_plainconv/fold_0",
        "localiser_plainconv/fold_1",
        "coarse_plainconv/fold_0",
        KILLED,
    }
    assert reproduced["said"].count("finished before") == 3
    assert {str(path.parent.relative_to(train)) for path in train.glob("*/*/score.json")} == RUNS
    ids = wandb_ids(train)
    assert set(ids) == RUNS
    assert {name: ids[name] for name in before} == before
    assert all(len(run_ids) == 1 for run_ids in ids.values())
    assert len(set.union(*ids.values())) == len(RUNS)


def test_the_table_holds_the_scores_of_the_saved_masks(
    reproduced: dict[str, Any], out: Path, rows: list[Row]
) -> None:
    data = reproduced["folder"] / "data"
    names = sorted(path.parent.name for path in data.glob("*/*__CT.nii.gz"))
    centers = {None, *(name.partition("-")[0] for name in names)}
    assert {(row["arm"], row["center"]) for row in rows} == {(arm, c) for arm in ARMS for c in centers}
    for row in rows:
        chosen = [name for name in names if row["center"] in (None, name.partition("-")[0])]
        assert row["cases"] == len(chosen)
        masks = [(out / row["arm"] / f"{name}.nii.gz", data / name / f"{name}.nii.gz") for name in chosen]
        scores = official_scores([(sitk.ReadImage(str(p)), sitk.ReadImage(str(t))) for p, t in masks])
        assert {name: row[name] for name in scores} == pytest.approx(scores, rel=LAST_DIGIT)


def test_the_networks_have_learnt_enough_for_scores_to_differ(rows: list[Row]) -> None:
    """Without this, tables of nothing but zeros would agree too; GTVn would take longer trainings."""
    overall = [row for row in rows if row["center"] is None]
    assert [row["arm"] for row in overall] == ARMS
    scores = {row["gtvp_dsc"] for row in overall}
    assert len(scores) > 1
    assert 0 < max(scores) < 1


def test_csv_and_wandb_have_every_digit_of_the_table(out: Path, rows: list[Row]) -> None:
    with (out / "ablation.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    for line, row in zip(written, rows, strict=True):
        center = row["center"] or "all"
        assert line == {name: "" if row.get(name) is None else str(row[name]) for name in line} | {
            "center": center
        }
    (logged,) = offline_runs(out)
    (path,) = logged.path.parent.rglob("*.table.json")
    table = json.loads(path.read_text())
    assert [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]] == [
        dict.fromkeys(table["columns"]) | row for row in rows
    ]


def test_the_report_has_the_scores_of_the_table(out: Path, rows: list[Row]) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    table = page[page.index("<table ") : page.index("</table>")]
    lines = [re.findall(r"<t[hd][^>]*>([^<]*)<", line) for line in table.split("<tr>")[2:]]
    shown = {name: [cell.split(" ")[0] for cell in cells[:5]] for name, *cells in lines}
    assert shown == {
        row["arm"]: [str(row["cases"]), *(f"{row[name]:.4f}" for name in SCORES)]
        for row in rows
        if row["center"] is None
    }
