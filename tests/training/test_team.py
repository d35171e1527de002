"""Processes that train together: who they are, how they agree, and that none outlives the others."""

import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import all_end

from hnseg.errors import HnsegError
from hnseg.preflight import check_share
from hnseg.training.build import _share_of_threads
from hnseg.training.spread import spread
from hnseg.training.team import Team, count_processes, find_team

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "a",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"}
SLURM |= {"SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_a_process_that_was_started_among_others_knows_its_place(environment):
    team = find_team("auto", environment)
    assert (team.rank, team.size, team.local_rank, team.local_size) == (5, 8, 1, 4)
    assert (team.node, team.nodes, team.leads) == (1, 2, False)
    assert find_team(8, environment).size == team.size


def test_alone_it_leads():
    for environment in ({}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}):
        assert find_team("auto", environment) == Team()
    assert find_team(1, SLURM) == Team()  # a job's tasks that train each for itself
    script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert find_team("auto", script) == Team()  # a batch script, whose tasks no srun has started
    assert Team().leads


def test_a_number_that_clashes_with_what_was_started_is_refused():
    with pytest.raises(HnsegError, match=r"trainer\.processes=1, but torchrun started 8; choose trainer=ddp"):
        find_team(1, TORCHRUN)
    with pytest.raises(HnsegError, match=r"trainer\.processes=4, but SLURM started 8"):
        find_team(4, SLURM)
    with pytest.raises(HnsegError, match="torchrun started 8 processes, not as many on each machine"):
        find_team("auto", TORCHRUN | {"LOCAL_WORLD_SIZE": "5"})
    with pytest.raises(HnsegError, match="SLURM started 8 processes, not as many on each machine"):
        find_team("auto", SLURM | {"SLURM_NNODES": "3"})


def test_it_counts_those_that_are_there_or_are_to_be_started():
    assert count_processes({"processes": "auto", "device": "cpu"}, Team(1, 4)) == 4
    assert count_processes({"processes": 1, "device": "auto"}, Team()) == 1
    assert count_processes({"processes": 3, "device": "cpu"}, Team()) == 3
    assert count_processes({"processes": "auto", "device": "cpu"}, Team()) == 2


def config(batch: int, accumulate: int) -> dict[str, dict[str, int]]:
    return {"training": {"batch_size": batch}, "trainer": {"accumulate": accumulate}}


def test_a_batch_that_does_not_fall_into_parts_is_refused():
    check_share(config(8, 2), processes=4, validated=4)
    with pytest.raises(HnsegError, match=r"training\.batch_size=6 .* 4 processes.*multiple of 4"):
        check_share(config(6, 1), processes=4, validated=4)
    with pytest.raises(HnsegError, match=r"batch_size=8 .*and trainer\.accumulate=4.*multiple of 16"):
        check_share(config(8, 4), processes=4, validated=4)
    with pytest.raises(HnsegError, match=r"4 processes for 3 validation cases.*data\.folds"):
        check_share(config(8, 1), processes=4, validated=3)


FOREVER = 3600  # seconds: longer than a test may take


def _agree(folder: Path, team: Team) -> None:
    """What a member hears of the others, in a file of its own."""
    team.join("cpu")
    order = folder / "order"
    gathered = team.gather(team.rank**2)
    shared = team.share(lambda: f"{team.rank} acted")

    def note() -> int:
        with order.open("a") as file:
            time.sleep(0.05 * (team.size - team.rank))  # the leader takes longest
            file.write(f"{team.rank}")
        return team.rank

    assert team.in_turn(note) == team.rank
    (folder / str(team.rank)).write_text(f"{gathered} {shared}")


def test_members_agree(tmp_path):
    spread(_agree, 2, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[0, 1] 0 acted"] * 2
    assert (tmp_path / "order").read_text() == "01"


def _refuse(rank: int, team: Team) -> None:
    team.join("cpu")

    def act() -> None:
        if team.rank == rank:
            raise HnsegError(f"{rank} cannot")

    team.in_turn(act)
    time.sleep(FOREVER)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_cannot_do_is_told_once_and_ends_all(rank):
    with pytest.raises(HnsegError, match=f"{rank} cannot"):
        spread(_refuse, 2, rank)


def _die(folder: Path, team: Team) -> None:
    (folder / str(team.rank)).write_text(str(os.getpid()))
    if team.rank:
        while not (folder / "0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(FOREVER)


def test_the_others_do_not_outlive_one_that_is_killed(tmp_path):
    with pytest.raises(HnsegError, match=r"trainer\.processes=2: one of them was killed"):
        spread(_die, 2, tmp_path)
    assert all_end([int((tmp_path / "0").read_text())], seconds=60)


def _defect(team: Team) -> None:
    if team.rank == 1:
        raise ZeroDivisionError("a defect")
    time.sleep(FOREVER)


def test_a_defect_keeps_its_kind():
    with pytest.raises(ZeroDivisionError, match="a defect"):
        spread(_defect, 2)


def _count_threads(folder: Path, team: Team) -> None:
    torch.set_num_threads(5)
    shares = []
    for _ in range(2):  # as the folds of a sweep, one after the other
        torch.set_num_threads(_share_of_threads(replace(team, meeting="env://")))
        shares.append(torch.get_num_threads())
    torch.set_num_threads(5)
    (folder / str(team.rank)).write_text(f"{shares} {_share_of_threads(team)}")


def test_members_share_the_threads_once(tmp_path):
    spread(_count_threads, 2, tmp_path)
    share = max(1, min(5, (os.cpu_count() or 1) // 2))
    assert (tmp_path / "1").read_text() == f"[{share}, {share}] 2"


def test_members_meet_in_a_folder_of_any_name(tmp_path, monkeypatch):
    odd = tmp_path / "größe 1%20"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    spread(_agree, 2, tmp_path)
    assert (tmp_path / "1").read_text() == "[0, 1] 0 acted"


def _never_begin(parent: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_does_not_begin_is_told(monkeypatch):
    monkeypatch.setattr("hnseg.training.spread.follow", _never_begin)
    with pytest.raises(HnsegError, match=r"trainer\.processes=2: one of them was killed"):
        spread(_defect, 2)
