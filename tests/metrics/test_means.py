"""Means over cases, however these are dealt out to processes."""

import torch
from torch import distributed

from hnseg.metrics import CaseMeans
from hnseg.training.spread import spread
from hnseg.training.team import Team


def test_it_is_the_mean_over_cases():
    means = CaseMeans(["dice", "loss"])
    for dice, loss in ((0.5, 3.0), (0.25, 1.0), (0.0, 2.0)):
        means.update({"loss": torch.tensor(loss), "dice": torch.tensor(dice)})
    assert means.compute() == {"dice": 0.25, "loss": 2.0}
    means.reset()
    assert means.compute()["dice"].isnan()


def _deal_out(team: Team) -> None:
    """Three cases for two processes."""
    team.join("cpu")
    means = CaseMeans(["dice"])
    for dice in torch.tensor([0.5, 0.25, 0.0])[team.rank :: team.size]:
        means.update({"dice": dice})
    assert means.compute()["dice"] == 0.25
    distributed.barrier()


def test_processes_with_unlike_numbers_of_cases_reduce_to_one():
    spread(_deal_out, 2)
