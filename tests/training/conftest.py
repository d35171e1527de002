"""A machine without a network, and trainings that only log."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from hnseg.config import Job, compose_job
from hnseg.data.splits import Split
from hnseg.processes import silence_libraries
from hnseg.training.loggers import loggers
from hnseg.training.runs import RunFolder

PROVENANCE = {"split": "5p1i7", "fingerprint": None, "data": "da7a"}
SPLIT = Split((("A-1", "A-3"), ("A-2", "A-4")))
PLACES = [
    "data.root=/home/somebody/hecktor",
    "data.head_labels=ward-7",
    "runs=ward-7/runs",
    "data.exclude=[JANE-DOE]",
]


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


@pytest.fixture(scope="session")
def composed() -> Job:
    """A training whose folders and cases bear names."""
    return compose_job(["name=trial", *PLACES])


@pytest.fixture
def job(composed: Job) -> Callable[..., Job]:
    """The same with another fold and logger: `job(fold=1, kind="csv")`."""

    def job(fold: int = 0, **logger: Any) -> Job:
        chosen = composed.logger.model_copy(update=logger)
        return composed.model_copy(update={"fold": fold, "logger": chosen})

    return job


@pytest.fixture
def begin() -> Callable[[Path], RunFolder]:
    """Begins the run of a folder, or goes on with it."""

    def begin(path: Path) -> RunFolder:
        folder = RunFolder(path)
        folder.begin({}, SPLIT)
        return folder

    return begin


@pytest.fixture
def make_trainer() -> Callable[..., L.Trainer]:
    """A trainer on the CPU that only runs its callbacks: `make_trainer(epochs, *callbacks)`."""

    def make_trainer(epochs: int, *callbacks: L.Callback, logger: Any = False, **settings: Any) -> L.Trainer:
        silence_libraries()
        return L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=list(callbacks),
            logger=logger,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    return make_trainer


@pytest.fixture
def log(job: Callable[..., Job], begin: Callable[[Path], RunFolder]) -> Callable[..., None]:
    """Log rows as a training does: `log(folder, {step: metrics}, resume=…, fold=…, kind=…)`."""

    def log(folder: Path, metrics: dict[int, dict[str, float]], *, resume: int = 0, **settings: Any) -> None:
        with loggers(begin(folder), job(**{"kind": "csv", **settings}), PROVENANCE, resume) as chosen:
            for step, values in metrics.items():
                for logger in chosen:
                    logger.log_metrics(values, step)
                    logger.save()
            for logger in chosen:
                logger.finalize("success")

    return log
