"""A few steps of a job, and what they tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from rich.progress import Progress

from hnseg.config import Job, compose_job
from hnseg.data.datamodule import Loading
from hnseg.data.phantom import make_cohort
from hnseg.devices import Precision, gpu_peak_mib, peak_mib, pick_precision, reset_gpu_peak
from hnseg.errors import HnsegError
from hnseg.processes import silence_libraries
from hnseg.training.cohort import find_fold
from hnseg.training.fit import check_components, make_datamodule, make_module, pick_machine, trainer_options

Config = dict[str, Any]
_WARM_UP = 5  # steps that memory, kernels and workers need to settle
_STARVED = 0.05  # share of waiting above which more loading would help
_TIGHT = 0.9  # share of the GPU's memory
# The parts of a step, and the ends of what Lightning's profiler calls them.
ACTIONS = {
    "wait": ("train_dataloader_next", ".batch_to_device", ".transfer_batch_to_device"),
    "forward": (".training_step",),
    "backward": (".backward",),
    "update": (".optimizer_step",),
}


@dataclass(frozen=True)
class Profile:
    """What some steps of a job took.

    Args:
        job: What was trained.
        made_up: Whether it had phantoms for want of a cohort.
        device: Where it ran.
        precision: In which arithmetic.
        loading: How its batches were made.
        steps: Batches that were measured.
        seconds: Of all of them, by part (`ACTIONS`).
        peak_mib: The most memory of this process.
        gpu_peak_mib: The most that tensors took on the GPU; None on a CPU.
    """

    job: Job
    made_up: bool
    device: torch.device
    precision: Precision
    loading: Loading
    steps: int
    seconds: dict[str, float]
    peak_mib: float
    gpu_peak_mib: float | None

    @property
    def samples(self) -> int:
        """Patches that were measured."""
        batch = self.job.training.batch_size // self.job.trainer.accumulate
        return self.steps * batch

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())

    @property
    def waiting(self) -> float:
        """Share of the time without a batch to work on."""
        return self.seconds["wait"] / self.total

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
        return {**machine, **counted, "peak_mib": self.peak_mib, "gpu_peak_mib": self.gpu_peak_mib}


class StepProfiler(SimpleProfiler):
    """Lightning's profiler, which waits for the GPU at the borders of a step's parts."""

    def start(self, action_name: str) -> None:
        """Begins an action."""
        _wait_for_gpu()
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        """Ends it."""
        _wait_for_gpu()
        super().stop(action_name)

    def seconds(self, warm_up: int) -> dict[str, float]:
        """Seconds of each part of a step, over all steps after the first `warm_up` batches.

        `wait` is until the next batch is made, and moved to the device.
        """
        total = {
            part: sum(
                sum(spent[warm_up:])
                for action, spent in self.recorded_durations.items()
                if action.endswith(endings)
            )
            for part, endings in ACTIONS.items()
        }
        # Lightning calls forward and backward pass within the optimiser's step.
        total["update"] -= total["forward"] + total["backward"]
        return total


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _Bar(L.Callback):
    """Shows how far a profile is; on a GPU, measures memory from the first measured batch on."""

    def __init__(self, steps: int) -> None:
        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("profiling", total=steps)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        """Advances."""
        self.bar.advance(self.task)
        if trainer.fit_loop.total_batch_idx + 1 == _WARM_UP:
            reset_gpu_peak(pl_module.device)


def profile(overrides: Sequence[str], steps: int) -> Profile:
    """Trains a job for some steps, on phantoms where no cohort is named.

    Leaves nothing behind but a named cohort's cache (`data.cache`), which a training takes up.

    Args:
        overrides: As for train.py.
        steps: How many batches to measure, after a few to warm up.

    Raises:
        HnsegError: Settings, a step or a cohort that train.py would refuse too, and more than one process.
    """
    silence_libraries()
    job = compose_job(overrides)
    if (processes := job.trainer.processes) != 1:
        raise HnsegError(
            f"trainer.processes={processes}: a profile measures one process; set trainer.processes=1 and "
            "training.batch_size to one process's share"
        )
    check_components(job)
    device, precision = pick_machine(job)
    if job.data.root is not None:
        return _measure(job, device, precision, steps, made_up=False)
    with TemporaryDirectory() as folder:
        make_cohort(Path(folder) / "phantoms", 4, 0, workers=2)
        places = [f"data.root={folder}/phantoms", f"data.cache={folder}/cache", "data.folds=2"]
        return _measure(compose_job([*overrides, *places]), device, precision, steps, made_up=True)


def _measure(job: Job, device: torch.device, precision: Precision, steps: int, *, made_up: bool) -> Profile:
    datamodule = make_datamodule(job, find_fold(job), device)
    datamodule.fingerprint()
    module = make_module(job, job.card(datamodule.spec), precision)
    batches = _WARM_UP + steps
    watch, profiler = _Bar(batches), StepProfiler()
    trainer = L.Trainer(
        **trainer_options(job, device, precision),
        max_epochs=-1,
        max_steps=-(-batches // job.trainer.accumulate),
        limit_val_batches=0,
        callbacks=[watch],
        profiler=profiler,
        logger=False,
        enable_checkpointing=False,
    )
    with watch.bar:
        trainer.fit(module, datamodule)
    return Profile(
        job=job,
        made_up=made_up,
        device=device,
        precision=precision,
        loading=datamodule.loading,
        steps=trainer.fit_loop.total_batch_idx + 1 - _WARM_UP,
        seconds=profiler.seconds(_WARM_UP),
        peak_mib=peak_mib(),
        gpu_peak_mib=gpu_peak_mib(device),
    )


def advice(found: Profile) -> list[str]:
    """What would help, as far as the figures tell."""
    told, settings = [], found.job.trainer
    cuda = found.device.type == "cuda"
    if found.waiting > _STARVED and cuda:
        mixes = found.job.augment.device == "cuda"
        ways = [] if mixes else ["augment.device=cuda (mix on the GPU)"]
        ways += [f"data.workers above {found.loading.workers}"]
        told.append(f"the GPU waits {found.waiting:.0%} of the time for batches: {' or '.join(ways)}")
    elif found.waiting > _STARVED:
        told.append(
            f"{found.waiting:.0%} of the time goes into making batches: data.workers=1 makes them beside the "
            "network where a core is free"
        )
    fastest = pick_precision(found.device)
    if found.precision == "float32" != fastest:
        told.append(f"it computes in float32: trainer.precision=auto takes {fastest} here")
    if cuda and settings.deterministic:
        told.append("trainer.deterministic=true forgoes the fastest kernels")
    if found.gpu_peak_mib is not None:
        room = torch.cuda.get_device_properties(found.device).total_memory / 2**20
        saving = settings.checkpointing or settings.accumulate > 1
        if found.gpu_peak_mib > _TIGHT * room:
            told.append("the GPU's memory is nearly full: trainer.checkpointing=true or trainer.accumulate=2")
        elif saving and found.gpu_peak_mib < room / 2:
            used = f"{found.gpu_peak_mib / 1024:.0f} of {room / 1024:.0f} GiB are used"
            told.append(f"{used}: without trainer.checkpointing and trainer.accumulate it may be faster")
    return told or ["nothing stands out: the time is the network's"]
