"""hnseg runs and hnseg compare, on run folders as train.py leaves them."""

import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from entry import hnseg, refused

from hnseg.data.splits import Split
from hnseg.training.runs import Run, RunFolder, compare_runs, find_runs, sort_runs

EPOCH = 30.0  # seconds


def config(fold: int | str = 0, arm: str = "fine_resenc", **settings: Any) -> dict[str, Any]:
    stage, model = arm.split("_")[:2]
    fixed = {"arm": arm, "fold": fold, "cte": False, "stage": {"name": stage}, "model": {"name": model}}
    fixed |= {"training": {"epochs": 10, "patch": [16, 16, 16]}, "logger": {"kind": "csv"}, "seed": 0}
    return fixed | settings


SPLIT = Split((("A-1",), ("A-2",)))


def begin(
    path: Path, epoch: int = 0, best: float | None = None, split: Split = SPLIT, **settings: Any
) -> RunFolder:
    """A run that stopped after an epoch."""
    folder = RunFolder(path)
    folder.begin(config(**settings), split)
    if epoch:
        folder.progress.write_text(json.dumps({"epoch": epoch, "epochs": 10, "seconds": EPOCH, "best": best}))
    return folder


def finish(path: Path, scores: dict[str, float], **settings: Any) -> None:
    begin(path, 10, 0.1, **settings).finish(scores)


def only(root: Path) -> Run:
    (found,) = find_runs(root)
    return found


def test_a_run_tells_what_it_is_and_how_far(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", 4, 0.5, fold=3, arm="fine_resenc_cte")
    found = only(tmp_path)
    assert (found.stage, found.model, found.fold, found.arm) == ("fine", "resenc", "3", "fine_resenc_cte")
    assert (found.epoch, found.epochs, found.best) == (4, 10, 0.5)
    assert (found.state, found.seconds_left) == ("stopped", 6 * EPOCH)
    with folder.locked():
        written = time.time() - 70  # the fifth and sixth epoch are behind it, by the clock
        os.utime(folder.progress, (written, written))
        assert only(tmp_path).state == "running"
        assert only(tmp_path).seconds_left == pytest.approx(6 * EPOCH - 70, abs=20)
    folder.finish({"val/dice": 0.75})
    found = only(tmp_path)
    assert (found.state, found.best, found.epoch, found.seconds_left) == ("finished", 0.75, 10, 0)


def test_an_error_leaves_a_failed_run_until_it_is_taken_up_again(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    with pytest.raises(RuntimeError), folder.locked():
        raise RuntimeError("out of memory")
    assert only(tmp_path).state == "failed"
    assert "RuntimeError: out of memory" in folder.failure.read_text()
    folder.begin(config(), SPLIT)
    assert only(tmp_path).state == "stopped"


def test_runs_are_listed_by_arm_and_fold_and_nothing_else_is(tmp_path: Path) -> None:
    for fold in (10, 2, "all"):
        begin(tmp_path / "a" / f"fold_{fold}", fold=fold)
    begin(tmp_path / "A" / "fold_0")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"architectures": ["of another program"]}')
    names = [str(found.path.relative_to(tmp_path)) for found in find_runs(tmp_path)]
    assert names == ["A/fold_0", "a/fold_2", "a/fold_10", "a/fold_all"]


def test_the_command_prints_every_run_and_writes_json(tmp_path: Path) -> None:
    older = tmp_path / "runs" / "n" / "localiser_plainconv" / "fold_0"
    finish(older, {"val/dice": 0.9}, arm="localiser_plainconv")
    began = datetime(2026, 11, 30, 14, 2).timestamp()
    os.utime(older / "run.id", (began, began))
    begin(tmp_path / "runs" / "n" / "fine_resenc" / "fold_1", 4, 0.5, fold=1)
    done = hnseg("runs", "--json", "runs.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    newest, oldest = (line for line in done.stdout.splitlines() if line[:1] == "│")
    for cell in ("n/fine_resenc/fold_1", "4/10", "0.5000", "stopped", "2:00 min", "3:00 min"):
        assert cell in newest
    for cell in ("n/localiser_plainconv/fold_0", "2026-11-30 14:02", "0.9000", "finished", "5:00 min"):
        assert cell in oldest
    stored = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [(run["best"], run["seconds_left"]) for run in stored] == [(0.5, 180), (0.9, 0)]


def test_runs_are_sorted_by_what_is_asked(tmp_path: Path) -> None:
    for name, epoch, best in (("a", 2, 0.3), ("b", 8, 0.6), ("c", 0, None)):
        begin(tmp_path / name, epoch, best)
        os.utime(tmp_path / name / "run.id", (1e9 + ord(name), 1e9 + ord(name)))
    finish(tmp_path / "d", {"val/dice": 0.5})
    runs = find_runs(tmp_path)
    orders = {"name": "abcd", "date": "dcba", "score": "bdac", "left": "bacd"}
    for order, names in orders.items():
        assert "".join(run.path.name for run in sort_runs(runs, order)) == names


def test_compare_shows_only_what_differs(tmp_path: Path) -> None:
    finish(tmp_path / "a", {"val/dice": 0.7, "val/gtvp_dsc": 0.5})
    finish(tmp_path / "b", {"val/dice": 0.8, "val_coarse/dice": 0.1}, training={"epochs": 10, "patch": [8]})
    settings, scores, folds = compare_runs(tmp_path / "a", tmp_path / "b")
    assert settings == {"training.patch": ([16, 16, 16], [8])}
    assert scores == {"val/dice": (0.7, 0.8)}
    assert folds == 1
    done = hnseg("compare", "a", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training.patch" in done.stdout
    assert "seed" not in done.stdout
    assert "+0.1000" in done.stdout


def test_compare_breaks_neither_keys_nor_paths(tmp_path: Path) -> None:
    key, path = "augment.transforms.simulate_low_resolution.zoom_lower", f"/data/{'long/' * 40}end"
    sides = {side: tmp_path / f"{'folder' * 20}_{side}" for side in "ab"}
    for side, folder in sides.items():
        finish(folder, {"val/dice": 0.7}, **{key: side, "init_from": path + side})
    done = hnseg("compare", *sides.values())
    assert all(text in done.stdout for text in (key, f"A  {sides['a']}", f"B  {path}b"))


def test_arms_are_compared_on_the_folds_they_share(tmp_path: Path) -> None:
    for fold, dice in ((0, 0.5), (1, 0.7), (2, 0.9)):
        finish(tmp_path / "a" / f"fold_{fold}", {"val/dice": dice}, fold=fold)
    for fold, dice in ((0, 0.6), (1, 1.0)):
        finish(tmp_path / "b" / f"fold_{fold}", {"val/dice": dice}, fold=fold, seed=1)
    begin(tmp_path / "b" / "fold_2", 3, fold=2, seed=1)
    settings, scores, folds = compare_runs(tmp_path / "a", tmp_path / "b")
    assert (settings, folds) == ({"seed": (0, 1)}, 2)
    assert scores["val/dice"] == pytest.approx((0.6, 0.8))


def test_compare_warns_where_other_cases_were_held_out(tmp_path: Path) -> None:
    other = Split((("A-2",), ("A-1",)))
    for name, fold, split in (("a", 0, SPLIT), ("b", 0, SPLIT), ("c", 1, SPLIT), ("d", 0, other)):
        finish(tmp_path / name, {"val/dice": 0.7}, fold=fold, split=split)
    done = {name: hnseg("compare", "a", name, cwd=tmp_path) for name in "bcd"}
    assert [len(one.stderr.splitlines()) for one in done.values()] == [0, 1, 1]
    assert "of other cases" in done["c"].stderr
    assert other.hash in done["d"].stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "nowhere"], "nowhere: no such file or folder"),
        (["compare", "a/fold_0", "empty"], "empty: no run lies there"),
        (["compare", "a", "c"], "no fold in common"),
        (["compare", "a", "."], "several arms"),
        (["runs", "damaged"], "damaged/score.json: damaged"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    for fold in (0, 1):
        begin(tmp_path / "a" / f"fold_{fold}", fold=fold)
        begin(tmp_path / "c" / f"fold_{fold + 2}", fold=fold + 2)
    begin(tmp_path / "damaged", fold=0).score.touch()
    (tmp_path / "empty").mkdir()
    if arguments[-1] == ".":
        (tmp_path / "damaged" / "score.json").unlink()
    assert message in refused(hnseg(*arguments, cwd=tmp_path))
