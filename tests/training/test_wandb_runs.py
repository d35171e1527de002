"""W&B runs: what they are called and hold, one a run folder whatever happens, on disk unless asked."""

import json
import socket
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import wandb
from wandb_files import WandbFile, offline_runs

import hnseg
from hnseg.errors import HnsegError
from hnseg.training.loggers import loggers, require_loggers
from hnseg.training.pictures import picture_path
from hnseg.training.wandb_runs import log_ablation, require_login


def metrics(history):
    """Rows without what W&B adds of its own."""
    return [
        {key: value for key, value in row.items() if key == "_step" or not key.startswith("_")}
        for row in history
    ]


def test_a_run_says_what_it_is_and_not_where(tmp_path, log, no_network, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-7")
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody")
    log(tmp_path / "run", {0: {"train/loss": 0.5}, 1: {"val/dice": 0.75}}, fold=3, kind="wandb")
    assert no_network == []
    assert capfd.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing beside the run's folder
    (found,) = offline_runs(tmp_path / "run")
    assert found.exit_code == 0
    run = found.run
    assert (run.display_name, run.run_group, run.job_type) == (
        "fine_resenc_cte_fold_3",
        "trial",
        "fine_resenc_cte",
    )
    assert set(run.tags) == {"fine", "resenc", "fine_resenc_cte", "fold_3", "paper"}
    assert (found.config["data"]["root"], found.config["data"]["folds"]) == ("(path)", 5)
    assert found.config["training"]["epochs"] == 1000
    assert found.config["provenance"]["data"] == "da7a"
    assert {"git", "versions"} <= found.config["provenance"].keys()
    places = (tmp_path, Path.home(), Path(hnseg.__file__).parent)
    for secret in ("ward-7", "somebody", "JANE-DOE", *map(str, places)):
        assert secret not in found.text


def test_what_belongs_to_one_step_is_one_row(tmp_path, begin, job):
    with loggers(begin(tmp_path), job(kind="wandb"), {}) as (_, logger):
        logger.log_metrics({"val/dice": 0.5}, 23)
        logger.log_metrics({"train/loss": 0.25}, 23)
        logger.log_metrics({"lr": 0.1}, 24)
    (found,) = offline_runs(tmp_path)
    assert metrics(found.history) == [
        {"_step": 23, "val/dice": 0.5, "train/loss": 0.25},
        {"_step": 24, "lr": 0.1},
    ]


def test_a_resumed_run_is_one_run_with_every_step_once(tmp_path, log):
    whole = {step: {"train/loss": 1 / (1 + step)} for step in range(6)}
    log(tmp_path, dict(list(whole.items())[:4]), kind="wandb")
    (before,) = offline_runs(tmp_path)
    for step in (1, 3):
        path = picture_path(tmp_path, "A-1", step)
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, np.full((2, 2, 3), step / 5))
    log(tmp_path, dict(list(whole.items())[2:]), resume=2, kind="wandb")
    (found,) = offline_runs(tmp_path)  # what was not sent is replaced: `wandb sync` has one file to send
    assert found.run.run_id == before.run.run_id
    assert [row["_step"] for row in found.history] == list(range(6))
    assert [row["train/loss"] for row in found.history] == [whole[step]["train/loss"] for step in range(6)]
    pictures = [row["_step"] for row in found.history if "pictures/A-1" in str(row)]
    assert pictures == [1]  # that of step 3 lies behind the checkpoint, and would be painted again
    assert not picture_path(tmp_path, "A-1", 3).exists()


def test_pictures_painted_offline_are_not_replayed_unless_asked_for(tmp_path, log):
    for pictures in (True, False):
        path = picture_path(tmp_path, "A-1", 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, np.zeros((2, 2, 3)))
        log(tmp_path, {1: {"train/loss": 1.0}}, resume=1, kind="wandb", pictures=pictures)
        (found,) = offline_runs(tmp_path)
        assert any("pictures/A-1" in str(row) for row in found.history) is pictures


@pytest.mark.parametrize("resumes", [[(2, 6)], [(4, 6), (6, 8)], [(2, 3), (2, 6)]])
def test_what_was_sent_is_not_logged_again_and_nothing_is_lost(tmp_path, log, resumes):
    """Resumed from a checkpoint's step, once or twice, each time killed after the last step."""
    log(tmp_path, {step: {"train/loss": 1.0} for step in range(4)}, kind="wandb")
    (before,) = offline_runs(tmp_path)
    before.path.with_name(f"{before.path.name}.synced").touch()
    for first, end in resumes:
        log(tmp_path, {step: {"train/loss": 1.0} for step in range(first, end)}, resume=first, kind="wandb")
    found = offline_runs(tmp_path)
    assert {one.run.run_id for one in found} == {before.run.run_id}
    assert found[-1].run.resume  # on the server it goes on with the first
    steps = [row["_step"] for one in found for row in one.history]
    assert steps == list(range(resumes[-1][1]))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6])
def test_what_a_killed_run_had_not_written_is_replayed_after_it_was_sent(tmp_path, log, kept):
    """W&B's file ends with a whole block: what metrics.csv holds beyond it must not be lost."""
    count = 400  # rows of about 200 bytes, in blocks of 32 KiB
    log(
        tmp_path, {step: {"train/loss": 1.0, "val/dice": step / count} for step in range(count)}, kind="wandb"
    )
    (before,) = offline_runs(tmp_path)
    data = before.path.read_bytes()
    before.path.write_bytes(data[: int(kept * len(data)) // 2**15 * 2**15])
    before.path.with_name(f"{before.path.name}.synced").touch()
    log(tmp_path, {count: {"train/loss": 0.5}}, resume=count, kind="wandb")
    part, rest = (path for path in sorted(tmp_path.glob("wandb/offline-run-*")) if path.is_dir())
    history = [*WandbFile(part, finished=False).history, *WandbFile(rest).history]
    assert [row["_step"] for row in history] == list(range(count + 1))
    assert [row["val/dice"] for row in history[:-1]] == [step / count for step in range(count)]


@pytest.fixture
def new_process():
    """W&B as in a process that has not used it: it reads its environment once."""
    wandb.teardown()
    yield
    wandb.teardown()


def test_an_agent_of_a_wandb_sweep_names_its_run_and_no_other(tmp_path, log, monkeypatch, new_process):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agent5run")
    for fold in (0, 1):  # two jobs of a multirun share a process
        log(tmp_path / str(fold), {0: {"train/loss": 1.0}}, fold=fold, kind="wandb")
    (first,), (second,) = (offline_runs(tmp_path / str(fold)) for fold in (0, 1))
    assert first.run.run_id == "agent5run" != second.run.run_id
    assert first.run.sweep_id == second.run.sweep_id == "sweep1"
    assert [len(run.history) for run in (first, second)] == [1, 1]


def test_a_run_that_an_agent_takes_up_stays_the_same_run(tmp_path, log, monkeypatch, new_process):
    log(tmp_path, {0: {"train/loss": 1.0}}, kind="wandb")
    (before,) = offline_runs(tmp_path)
    before.path.with_name(f"{before.path.name}.synced").touch()
    wandb.teardown()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "agent5run")
    log(tmp_path, {1: {"train/loss": 0.5}}, resume=1, kind="wandb")
    first, second = offline_runs(tmp_path)
    assert first.run.run_id == second.run.run_id != "agent5run"
    assert second.run.sweep_id == "sweep1"


def test_a_run_that_fails_is_closed_as_failed(tmp_path, begin, job):
    with pytest.raises(RuntimeError, match="lost"), loggers(begin(tmp_path), job(kind="wandb"), {}):
        raise RuntimeError("lost")
    assert wandb.run is None
    (found,) = offline_runs(tmp_path)
    assert found.exit_code == 1


@pytest.fixture
def logged_out(tmp_path, monkeypatch, new_process):
    """W&B without credentials, whatever this machine has."""
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_online_without_a_key_is_one_line_and_no_prompt(job, logged_out, no_network, capfd):
    with pytest.raises(HnsegError, match=r"logger\.mode=online needs WANDB_API_KEY"):
        require_loggers(job(kind="wandb", mode="online").logger)
    assert no_network == []
    assert capfd.readouterr().err == ""


def test_a_key_is_found_even_after_an_offline_run(tmp_path, log, monkeypatch, logged_out, no_network):
    log(tmp_path / "run", {0: {"train/loss": 1.0}}, kind="wandb")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(HnsegError, match=r"^--mode online needs WANDB_API_KEY .*40\+ characters"):
        require_login("--mode online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    require_login("--mode online")
    assert no_network == []
    logs = tmp_path.glob(".cache/wandb/logs/core-debug-*.log")  # of W&B's own process
    assert not any("graphql" in path.read_text() for path in logs)


ROWS = [
    {
        "arm": "full",
        "center": None,
        "cases": 3,
        "gtvp_dsc": 0.75,
        "gtvp_dsc_note": "interval too narrow",
        "p": None,
    },
    {"arm": "full", "center": "A", "cases": 2, "gtvp_dsc": 0.625},
]


def test_an_ablation_is_a_table_and_logged_again_it_replaces_what_was_not_sent(tmp_path):
    for rows in (ROWS[:1], ROWS):
        log_ablation(tmp_path, rows)
        (found,) = offline_runs(tmp_path)
        assert (found.run.display_name, found.run.run_group) == ("ablation", tmp_path.name)
        (path,) = found.path.parent.rglob("*.table.json")
        table = json.loads(path.read_text())
        assert table["columns"] == ["arm", "center", "cases", "gtvp_dsc", "gtvp_dsc_note", "p"]
        shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert shown == [{**dict.fromkeys(table["columns"]), **row} for row in rows]
