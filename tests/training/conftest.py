"""A machine without a network, and trainings that only log."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trackable import CONFIG, PROVENANCE

from hnseg.training.loggers import loggers


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to leave the machine fails; the addresses tried are returned."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise OSError("no network in tests")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return tried


@pytest.fixture
def log() -> Callable[..., None]:
    """Log rows as a training does: `log(folder, {step: metrics}, resume=…, **settings)`."""

    def log(
        folder: Path, metrics: dict[int, dict[str, float]], *, resume: int = 0, fold: int = 0, **settings: Any
    ) -> None:
        config = CONFIG | {"fold": fold, "logger": {"kind": "csv", **settings}}
        with loggers(folder, config, PROVENANCE, resume) as chosen:
            for step, values in metrics.items():
                for logger in chosen:
                    logger.log_metrics(values, step)
                    logger.save()
            for logger in chosen:
                logger.finalize("success")

    return log
