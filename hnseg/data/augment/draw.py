"""How amounts are drawn, by torch's generator, so that a sample follows from its seed."""

from __future__ import annotations

import torch


def uniform(low: float, high: float) -> float:
    """A number from [low, high)."""
    return torch.empty(1).uniform_(low, high).item()


def coin(probability: float) -> bool:
    """True with this probability."""
    return torch.rand(1).item() < probability


def about_one(low: float, high: float) -> float:
    """A factor that is below 1 as often as above it, however far either bound is (nnU-Net's BGContrast)."""
    return uniform(low, 1) if coin(0.5) else uniform(1, high)
