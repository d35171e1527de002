"""hnseg cache: what a cache holds, which of it the runs use, and what --prune leaves."""

import os
import shutil
from pathlib import Path

import pytest
from entry import hnseg, job, refused, write_cohort


def entries(cache: Path) -> set[Path]:
    return {path.parent for path in cache.rglob("meta.json")}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Of two runs on different grids."""
    cohort = write_cohort(tmp_path / "data")
    job(cohort, tmp_path / "runs")
    job(cohort, tmp_path / "runs", "name=wider", "recipe.roi.jitter_mm=12")
    return tmp_path / "cache"


def test_prune_removes_what_no_run_uses_and_nothing_else(cache: Path, tmp_path: Path) -> None:
    before = entries(cache)
    assert len(before) == 8  # two grids of four cases
    done = hnseg("cache", cache, "--runs", tmp_path / "runs", "--prune")
    assert done.returncode == 0, done.stderr
    assert "0 volumes" in done.stdout
    assert entries(cache) == before

    shutil.rmtree(tmp_path / "runs" / "wider")
    done = hnseg("cache", cache, "--runs", tmp_path / "runs")
    assert "4 volumes" in done.stdout
    assert "--prune" in done.stderr
    assert entries(cache) == before  # it only says so

    hnseg("cache", cache, "--runs", tmp_path / "runs", "--prune")
    left = entries(cache)
    assert len(left) == 4
    assert len({entry.parents[1] for entry in left}) == len(list(cache.glob("fine-*"))) == 1
    job(tmp_path / "data", tmp_path / "runs", "name=again")
    assert entries(cache) == left  # the first run's, which another one takes up


def test_a_volume_of_a_file_that_changed_is_of_no_use(cache: Path, tmp_path: Path) -> None:
    ct = next((tmp_path / "data").rglob("A-0__CT.nii.gz"))
    os.utime(ct, (1e9, 1e9))
    hnseg("cache", cache, "--runs", tmp_path / "runs", "--prune")
    assert {entry.parent.name for entry in entries(cache)} == {"B-1", "A-2", "B-3"}
    shutil.rmtree(tmp_path / "data")  # whose files cannot be looked at: their volumes stay
    hnseg("cache", cache, "--runs", tmp_path / "runs", "--prune")
    assert len(entries(cache)) == 6


def test_a_folder_that_is_no_cache_keeps_its_files(cache: Path, tmp_path: Path) -> None:
    files = sorted((tmp_path / "runs").rglob("*"))
    hnseg("cache", tmp_path / "runs", "--runs", tmp_path / "runs", "--prune")
    assert sorted((tmp_path / "runs").rglob("*")) == files
    (tmp_path / "none").mkdir()
    assert "no run lies there" in refused(hnseg("cache", cache, "--runs", tmp_path / "none", "--prune"))
