"""The learning rate of a training that is made longer than it was begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hnseg.construct import construct
from hnseg.training.run_folder import Length

Config = dict[str, Any]
_RAMP, _LEAST = 0.1, 3  # of the added epochs, and in epochs
_LENGTHS = ("total_iters", "t_total")  # what schedules call their number of epochs


class Table(LRScheduler):
    """A rate for each epoch, whatever schedule a checkpoint comes from.

    Args:
        optimizer: Its own rate is multiplied.
        factors: One for each epoch.
    """

    def __init__(self, optimizer: Optimizer, factors: Sequence[float]) -> None:
        self.factors = list(factors)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of the epoch, one for each group of weights."""
        factor = self.factors[min(self.last_epoch, len(self.factors) - 1)]
        return [rate * factor for rate in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The epoch; the rates follow from the configuration."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the epoch of any schedule, whose own next rate is dropped."""
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def make_scheduler(config: Config, lengths: Sequence[Length]) -> Callable[[Optimizer], LRScheduler]:
    """The configured schedule, or its extension for a training that was begun with fewer epochs.

    The rate never jumps: from the last that was trained with it goes linearly, over the first tenth of the
    added epochs (three at least), to that of the schedule of the longer training, and follows it from there.

    Args:
        config: The composed configuration.
        lengths: With how many epochs the training was begun before, and how many were trained so.
    """
    schedule, epochs = config["optimizer"]["schedule"], config["training"]["epochs"]
    earlier = [length for length in lengths if length["epochs"] < epochs]
    if not earlier:
        return construct(schedule, "optimizer.schedule")
    factors = _factors(schedule, earlier[0]["epochs"])
    for length, until in zip(earlier, [*(one["epochs"] for one in earlier[1:]), epochs], strict=True):
        factors = _extended(factors, length["trained"], _factors(schedule, until))
    return partial(Table, factors=factors)


def _extended(factors: list[float], trained: int, longer: list[float]) -> list[float]:
    """`factors` as far as they were trained with, then those of a longer schedule."""
    if trained == 0:
        return longer
    added = len(longer) - trained
    ramp = max(_LEAST, round(_RAMP * added))
    start = factors[trained - 1]
    shares = (min(1.0, (number + 1) / ramp) for number in range(added))
    return factors[:trained] + [
        start + share * (rate - start) for share, rate in zip(shares, longer[trained:], strict=True)
    ]


def _factors(schedule: Config, epochs: int) -> list[float]:
    """What a schedule of so many epochs multiplies the rate with in each of them."""
    told = schedule | {key: epochs for key in _LENGTHS if key in schedule}
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, factors = construct(told, "optimizer.schedule")(optimizer), []
    for _ in range(epochs):
        factors.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return factors
