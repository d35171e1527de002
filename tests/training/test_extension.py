"""A run that is made longer goes on: no jump of the learning rate, the longer schedule in the end."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from entry import compose_job, load, tiny, write_cohort
from omegaconf import OmegaConf
from torch.optim import SGD

from hnseg.errors import HnsegError
from hnseg.training.extension import make_scheduler


def configured(epochs: int, optimizer: str = "nnunet") -> dict[str, Any]:
    overrides = ["stage=fine", f"optimizer={optimizer}", f"training.epochs={epochs}"]
    return OmegaConf.to_container(compose_job("train", *overrides), resolve=True)


def rates(config: dict[str, Any], lengths: list[Any], lr: float = 0.01) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, seen = make_scheduler(config, lengths)(optimizer), []
    for _ in range(config["training"]["epochs"]):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def poly(epochs: int) -> list[float]:
    """nnU-Net's schedule, by its formula."""
    return [0.01 * (1 - epoch / epochs) ** 0.9 for epoch in range(epochs)]


def test_a_run_that_was_never_longer_has_the_plain_schedule():
    assert rates(configured(20), []) == pytest.approx(poly(20))
    # What was written down by a command that was cut off before it took effect does not count.
    assert rates(configured(20), [{"epochs": 20, "trained": 20}]) == pytest.approx(poly(20))


def test_the_rate_goes_up_over_a_tenth_of_what_was_added():
    seen, short, long = rates(configured(120), [{"epochs": 20, "trained": 20}]), poly(20), poly(120)
    assert seen[:20] == pytest.approx(short)
    assert seen[30:] == pytest.approx(long[30:])
    # By hand: the first of ten steps from the last rate of the short schedule.
    assert seen[20] == pytest.approx(short[-1] + 0.1 * (long[20] - short[-1]))
    assert seen[24] == pytest.approx(short[-1] + 0.5 * (long[24] - short[-1]))


@pytest.mark.parametrize("optimizer", ["nnunet", "auto3dseg", "short"])
def test_no_rate_jumps(optimizer):
    """No epoch moves it by more than a tenth of its range, but for the warm-up of the schedule's own."""
    lengths = [{"epochs": 40, "trained": 30}, {"epochs": 100, "trained": 100}]
    seen, plain = (rates(configured(200, optimizer), one, 1.0) for one in (lengths, []))
    assert max(abs(after - before) for before, after in pairwise(seen[4:])) <= 0.1 * max(seen)
    assert seen[110:] == pytest.approx(plain[110:])


def test_a_run_without_an_epoch_behind_it_is_simply_longer():
    assert rates(configured(20), [{"epochs": 10, "trained": 0}]) == pytest.approx(poly(20))


def job(cohort: Path, runs: Path, epochs: int) -> float:
    settings = ["stage=fine", *tiny("resenc", cohort, runs), "logger=csv", "training.iterations=2"]
    return load("train").main(compose_job("train", *settings, f"training.epochs={epochs}"))


def test_a_finished_run_is_trained_on(tmp_path):
    cohort = write_cohort(tmp_path / "scans")
    job(cohort, tmp_path / "runs", 4)
    (folder,) = (tmp_path / "runs").rglob("fold_0")
    first = torch.load(folder / "last.ckpt", weights_only=True)
    job(cohort, tmp_path / "runs", 8)
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert (first["epoch"], last["epoch"]) == (3, 7)
    assert (first["global_step"], last["global_step"]) == (8, 16)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (key,) = (name for name in rows[0] if name.startswith("lr-"))
    seen = {int(row["step"]) // 2: float(row[key]) for row in rows if row[key]}
    short, long, last = poly(4), poly(8), poly(4)[-1]
    third = [last + (number + 1) / 3 * (rate - last) for number, rate in enumerate(long[4:7])]
    assert seen == pytest.approx(dict(enumerate([*short, *third, long[7]])))
    assert json.loads((folder / "progress.json").read_text())["epochs"] == 8
    with pytest.raises(HnsegError, match=r"holds a run with training\.epochs=8, not 4"):
        job(cohort, tmp_path / "runs", 4)
