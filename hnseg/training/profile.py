"""A few steps of a job: where their time and memory go, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from rich.progress import Progress
from torch.utils.flop_counter import FlopCounterMode

from hnseg.config import Job, compose_job
from hnseg.data.datamodule import Loading
from hnseg.data.phantom import make_cohort
from hnseg.devices import Precision, gpu_peak_mib, peak_mib, pick_precision, reset_gpu_peak
from hnseg.errors import HnsegError
from hnseg.models.nets import build as build_network
from hnseg.processes import silence_libraries
from hnseg.training.cohort import find_fold
from hnseg.training.fit import check_components, make_datamodule, make_module, pick_machine, trainer_options

_WARM_UP = 5  # steps that memory, kernels and workers need to settle
_STARVED = 0.05  # share of waiting above which more loading would help
_TIGHT = 0.9  # share of the GPU's memory
# The parts of a step, and the ends of what Lightning's profiler calls them.
ACTIONS = {
    "wait": ("train_dataloader_next", ".batch_to_device", ".transfer_batch_to_device"),
    "forward": (".training_step",),
    "backward": (".backward",),
    "update": ("run_training_batch",),
}


@dataclass(frozen=True)
class Profile:
    """What some steps of a job took.

    Args:
        synthetic: Whether on phantoms, for want of a cohort.
        steps: Batches that were measured.
        seconds: Of all of them, by part (`ACTIONS`).
        peak_mib: The most memory of this process.
        gpu_peak_mib: The most that tensors took on the GPU; None on a CPU.
    """

    job: Job
    synthetic: bool
    device: torch.device
    precision: Precision
    loading: Loading
    steps: int
    seconds: dict[str, float]
    peak_mib: float
    gpu_peak_mib: float | None

    @property
    def samples(self) -> int:
        return self.steps * (self.job.training.batch_size // self.job.trainer.accumulate)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def hours(self) -> float | None:
        """Of the whole training without its validations; None where an epoch is one pass over the cases."""
        training = self.job.training
        updates = training.iterations and training.iterations * training.epochs
        return updates and updates * self.job.trainer.accumulate * self.total / self.steps / 3600

    def figures(self) -> dict[str, Any]:
        """What was measured, as plain numbers and texts."""
        machine = {"device": self.device.type, "precision": self.precision, "workers": self.loading.workers}
        counted = {"steps": self.steps, "samples": self.samples, "seconds": self.seconds}
        return machine | counted | {"peak_mib": self.peak_mib, "gpu_peak_mib": self.gpu_peak_mib}


class StepProfiler(SimpleProfiler):
    """Lightning's profiler, which waits for the GPU at the borders of a step's parts."""

    def start(self, action_name: str) -> None:
        _wait_for_gpu()
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        _wait_for_gpu()
        super().stop(action_name)

    def seconds(self) -> dict[str, float]:
        """Seconds of each part of a step, over all steps after the warm-up.

        `wait` is until the next batch is made, and moved to the device.
        """
        total = dict.fromkeys(ACTIONS, 0.0)
        for part, endings in ACTIONS.items():
            for action, spent in self.recorded_durations.items():
                if action.endswith(endings):
                    total[part] += sum(spent[_WARM_UP:])
        # What is left of a batch: the first of accumulated parts have no optimiser's step of their own.
        total["update"] -= total["forward"] + total["backward"]
        return total


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def profile(overrides: Sequence[str], steps: int) -> Profile:
    """Trains a job for some steps, on phantoms where no cohort is named.

    Leaves nothing behind but a named cohort's cache (`data.cache`), which a training takes up.

    Args:
        overrides: As for hnseg train.
        steps: How many batches to measure, after a few to warm up.
    """
    silence_libraries()
    job = compose_job(overrides)
    if (processes := job.trainer.processes) != 1:
        raise HnsegError(
            f"trainer.processes={processes}: a profile measures one process; set trainer.processes=1 and "
            "training.batch_size to one process's share"
        )
    check_components(job)
    if job.data.root is not None:
        return _measure(job, steps, synthetic=False)
    with TemporaryDirectory() as folder:
        make_cohort(Path(folder) / "phantoms", 4, 0, workers=2)
        places = [f"data.root={folder}/phantoms", f"data.cache={folder}/cache", "data.folds=2"]
        return _measure(compose_job([*overrides, *places]), steps, synthetic=True)


def _measure(job: Job, steps: int, *, synthetic: bool) -> Profile:
    device, precision = pick_machine(job)
    datamodule = make_datamodule(job, find_fold(job), device)
    datamodule.fingerprint()
    module = make_module(job, job.card(datamodule.spec), precision)

    profiler, batches = StepProfiler(), _WARM_UP + steps
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("profiling", total=batches)

    def after_batch(trainer: L.Trainer, *_: Any) -> None:
        bar.advance(task)
        if trainer.fit_loop.total_batch_idx + 1 == _WARM_UP:
            reset_gpu_peak(device)

    length = {"max_epochs": -1, "max_steps": -(-batches // job.trainer.accumulate), "limit_val_batches": 0}
    trainer = L.Trainer(
        **trainer_options(job, device, precision) | length,
        callbacks=[LambdaCallback(on_train_batch_end=after_batch)],
        profiler=profiler,
        logger=False,
        enable_checkpointing=False,
    )
    with bar:
        trainer.fit(module, datamodule)
    return Profile(
        job=job,
        synthetic=synthetic,
        device=device,
        precision=precision,
        loading=datamodule.loading,
        steps=trainer.fit_loop.total_batch_idx + 1 - _WARM_UP,
        seconds=profiler.seconds(),
        peak_mib=peak_mib(),
        gpu_peak_mib=gpu_peak_mib(device),
    )


def training_flops(job: Job, cases: int) -> float:
    """Floating-point operations of a training's steps, without its validations.

    Args:
        job: The training.
        cases: That it trains on.
    """
    training, card = job.training, job.card(job.input_spec)
    with torch.device("meta"):  # shapes alone
        network = build_network(**card.network)
        patch = torch.zeros(1, card.network["in_channels"], *training.patch)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(patch)
    iterations = training.iterations or -(-cases // training.batch_size)
    # Gradients of activations and of weights each cost what the forward pass does.
    return 3 * counter.get_total_flops() * training.batch_size * iterations * training.epochs


def advice(found: Profile) -> list[str]:
    """What would help, as far as the figures tell."""
    lines, waiting = [], found.seconds["wait"] / found.total
    if waiting > _STARVED:
        ways = [f"data.workers above {found.loading.workers}"]
        if found.device.type == "cuda" != found.job.augment.device:
            ways.append("augment.device=cuda")
        lines.append(f"{waiting:.0%} of the time goes into waiting for batches: {' or '.join(ways)}")
    fastest = pick_precision(found.device)
    if found.precision == "float32" != fastest:
        lines.append(f"it computes in float32: trainer.precision=auto takes {fastest} here")
    if found.gpu_peak_mib is not None:
        room = torch.cuda.get_device_properties(found.device).total_memory / 2**20
        if found.gpu_peak_mib > _TIGHT * room:
            lines.append(
                "the GPU's memory is nearly full: trainer.checkpointing=true or trainer.accumulate=2"
            )
    return lines or ["nothing stands out: the time is the network's"]
