"""What a training takes is known before it begins, and refused where it cannot fit."""

import math
import os
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from entry import compose_job, load, tiny, write_cohort
from omegaconf import OmegaConf

from hnseg.data.prepare import prepare
from hnseg.data.sampling import Sampling
from hnseg.devices import free_memory
from hnseg.errors import HnsegError
from hnseg.imaging.case import read_cases
from hnseg.job import describe, make_input, make_stage
from hnseg.training import needs as module
from hnseg.training.needs import Step, StepJob, estimate, require_disk, require_memory
from hnseg.training.run_folder import RunFolder

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


SMALL = {
    "plainconv": ["features=[16,32,64]", "strides=[1,2,2]"],
    "segresnet": ["init_filters=16", "blocks_down=[1,1,1]", "depths=2"],
}


def step_job(model: str) -> StepJob:
    """A network large enough that a checkpoint's keys do not count, at a small patch."""
    size = ["training.patch=[32,32,32]", "training.batch_size=2", "training.ema=0.9"]
    settings = [f"model.settings.{setting}" for setting in SMALL[model]]
    config = OmegaConf.to_container(
        compose_job("train", "stage=fine", f"model={model}", *size, *settings), resolve=True
    )
    stage = make_stage(config)
    return StepJob.of(config, describe(config, stage, make_input(config, stage))["network"], processes=1)


@pytest.mark.parametrize("model", ["plainconv", "segresnet"])
def test_a_checkpoint_is_as_large_as_told(model, tmp_path):
    """SGD keeps one number a weight, AdamW two; the average is one more."""
    job = step_job(model)
    needs = estimate(job, "float32", CPU)
    step = Step(job, CPU, "float32")
    step()
    stored = {"weights": step.network.state_dict(), "average": step.average}
    torch.save(stored | {"optimizer": step.optimizer.state_dict()}, tmp_path / "last.ckpt")
    assert needs.checkpoint == pytest.approx((tmp_path / "last.ckpt").stat().st_size, rel=0.03)
    assert needs.parameters == sum(weight.numel() for weight in step.network.parameters())


def test_what_stays_between_steps_is_weights_gradients_momentum_average_and_batch():
    job = step_job("plainconv")
    needs, voxels = estimate(job, "float32", CPU), math.prod(job.patch)
    batch = job.batch * voxels * (4 * job.network["in_channels"] + 8)
    assert needs.between == pytest.approx(4 * 4 * needs.parameters + batch, rel=0.02)


def test_ways_to_take_less_do():
    job = step_job("plainconv")
    peak = estimate(job, "bfloat16", CPU).peak
    assert estimate(replace(job, batch=1), "bfloat16", CPU).peak < peak
    assert estimate(replace(job, checkpointing=True), "bfloat16", CPU).peak < peak
    halves = compose_job("train", "trainer.accumulate=2", "training.batch_size=4", "trainer=ddp")
    assert StepJob.of(OmegaConf.to_container(halves, resolve=True), {}, processes=2).batch == 1


def test_a_step_that_cannot_fit_is_refused_with_what_would(monkeypatch):
    job = step_job("plainconv")
    needs = estimate(job, "bfloat16", CPU)
    monkeypatch.setattr(module, "free_memory", lambda _: needs.peak)
    require_memory(job, needs, CPU, "bfloat16")
    parts = [r"\[32, 32, 32\]: a step takes .* at least, and .* of memory are free"]
    parts += [r"trainer\.checkpointing=true takes", r"one patch at a time \(trainer\.accumulate\) takes"]
    told = ".*".join([*parts, "both takes", "a smaller patch less"])
    with pytest.raises(HnsegError, match=told):
        require_memory(job, needs, CPU, "bfloat16", sharers=2)
    monkeypatch.setattr(module, "free_memory", lambda _: None)  # where the system does not tell
    require_memory(job, needs, CPU, "bfloat16", sharers=2)


def test_free_memory_is_no_more_than_there_is():
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    swap = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "SwapTotal" in line)
    assert 2**20 < free_memory(CPU) <= pages + int(swap.split()[1]) * 1024


def test_checkpoints_that_cannot_fit_are_refused(tmp_path, monkeypatch):
    """Best, last and the one before it, and one while it is written; those that are there are counted."""
    folder, needs = RunFolder(tmp_path / "runs" / "fold_0"), estimate(step_job("plainconv"), "float32", CPU)
    needs = replace(needs, checkpoint=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 3999))
    with pytest.raises(HnsegError, match=r"fold_0: 4 checkpoints of 0 MiB take 0 MiB, .*runs=FOLDER"):
        require_disk(needs, folder)
    folder.path.mkdir(parents=True)
    folder.last.write_bytes(bytes(1))
    require_disk(needs, folder)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


@pytest.mark.parametrize("source", ["study", "head_crop"])
def test_a_cache_is_refused_at_the_size_that_it_has(cohort, tmp_path, monkeypatch, source):
    stage = make_stage(
        OmegaConf.to_container(compose_job("train", *tiny("resenc", cohort, tmp_path)), resolve=True)
    )
    settings = {"sampling": Sampling(source), "margin_mm": 6.0, "workers": 1}
    cases = read_cases(cohort)
    volumes = prepare(cases, stage, tmp_path / "cache", **settings)
    headers = 3 * 128 * len(volumes)
    taken = sum(path.stat().st_size for v in volumes for path in v.folder.glob("*.npy")) - headers
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, taken - 1))
    with pytest.raises(HnsegError, match=r"4 cases prepared for the fine stage take .*data\.cache=FOLDER"):
        prepare(cases, stage, tmp_path / "another", **settings)
    assert not (tmp_path / "another").exists()
    prepare(cases, stage, tmp_path / "cache", **settings)  # what is there needs no room
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, taken))
    assert len(prepare(cases, stage, tmp_path / "another", **settings)) == 4


def test_train_py_refuses_before_it_prepares(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda _: 1000)
    arguments = [*tiny("resenc", cohort, tmp_path), f"data.cache={tmp_path / 'cache'}", "logger=csv"]
    with pytest.raises(HnsegError, match=r"training\.patch=\[16, 16, 16\]: a step takes"):
        load("train").main(compose_job("train", "stage=fine", *arguments))
    assert not (tmp_path / "cache").exists()
