"""A case list over a Ray cluster, or over processes of this machine. The only module that knows Ray."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hnseg.config import Inference
from hnseg.devices import pick_device
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case
from hnseg.inference.cascade import Cascade, load_cascades
from hnseg.inference.predict_cases import Options, made_with, require_same, run
from hnseg.inference.records import Outcome, reporting
from hnseg.models.bundle import LISTING


class Share(NamedTuple):
    """How many actors there are, where their networks run, and what Ray keeps for each."""

    workers: int
    device: str
    gpus: int
    cpus: int
    threads: int


def share(nodes: Sequence[Mapping[str, float]], device: str = "auto", workers: int | None = None) -> Share:
    """A GPU for each actor where there are GPUs, else the CPUs in equal parts.

    Args:
        nodes: The resources of each node as Ray has them, CPU and GPU among them.
        device: auto, cpu or cuda.
        workers: Number of actors; None is one for each GPU, or on CPUs one for each node.

    Raises:
        HnsegError: More actors than there is room for, or cuda without a GPU.
    """
    gpus, cpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("GPU", "CPU"))
    if device == "cuda" and not any(gpus):
        raise HnsegError("trainer.device=cuda, but no node of the Ray cluster has a GPU; choose auto or cpu")
    use_gpus = device != "cpu" and any(gpus)
    room, what = (sum(gpus), "GPUs") if use_gpus else (sum(cpus), "CPUs")
    if (workers or 1) > room:
        raise HnsegError(f"engine.workers={workers}: the Ray cluster has {room} {what}; set it to no more")
    if use_gpus:
        threads = min(cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu)
        return Share(workers or room, "cuda", gpus=1, cpus=0, threads=max(threads, 1))
    workers = workers or sum(count > 0 for count in cpus)
    # The most threads with which all of them find room.
    each = next(n for n in range(max(cpus), 0, -1) if sum(count // n for count in cpus) >= workers)
    return Share(workers, "cpu" if device == "auto" else device, gpus=0, cpus=each, threads=each)


class Actor:
    """The cascade of a call in a process of its own.

    Args:
        call: Of hnseg infer; its device is cpu or cuda.
        folder: The caller's working directory, which paths may be relative to.
    """

    def __init__(self, call: Inference, folder: Path) -> None:
        self.call = call
        with suppress(OSError):  # a node may reach absolute paths alone
            os.chdir(folder)

    @cached_property
    def cascade(self) -> Cascade:
        """The cascade, loaded."""
        (cascade,) = load_cascades(self.call, [pick_device(self.call.trainer.device)])
        return cascade

    def load(self) -> dict[str, Any]:
        """Loads the cascade, and says what its masks depend on.

        Raises:
            HnsegError: The node does not reach the bundle.
        """
        if not (self.call.bundle / LISTING).exists():
            raise HnsegError(
                f"bundle={self.call.bundle}: not there on {socket.gethostname()}; each node of the cluster "
                "must reach bundle, scans and out: put them on storage that all nodes mount"
            )
        return made_with(self.cascade)

    def predict(self, cases: Sequence[Case], options: Options) -> list[Outcome]:
        """Segments some cases."""
        outcomes: list[Outcome] = []
        run(cases, [{self.call.out: self.cascade}], options, outcomes.append)
        return outcomes


_START_S = 600.0  # that actors may take to load
_STORE = 80 * 2**20  # bytes of shared memory, near Ray's least: only paths and sentences travel
_AT_ONCE = 8  # cases that an actor is given at a time, at most: it reads ahead and writes behind within them


def predict_on_ray(cases: Sequence[Case], call: Inference, options: Options) -> list[Outcome]:
    """`predict_cases` by the actors of a cluster, which share the list through `out` as any processes do.

    Ray starts an actor that dies anew and gives it its cases again. `engine.address=local` starts Ray for
    this call, on this machine's loopback interface alone; `auto` or HOST:PORT joins a cluster.

    Raises:
        HnsegError: Ray is not installed or not reached, the cluster is too small, or an actor cannot load.
    """
    with _connected(call.engine.address):
        import ray
        from ray.util import ActorPool

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        part = share(nodes, call.trainer.device, call.engine.workers)
        remote = ray.remote(Actor).options(
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            scheduling_strategy="SPREAD",
            max_restarts=-1,
            max_task_retries=-1,
        )
        machine = {"device": part.device, "threads": call.trainer.threads or part.threads}
        call = call.model_copy(update={"trainer": call.trainer.model_copy(update=machine)})
        actors = [remote.remote(call, Path.cwd()) for _ in range(part.workers)]
        require_same(_load(actors))
        size = max(1, min(_AT_ONCE, len(cases) // (4 * part.workers)))
        parts = [cases[start : start + size] for start in range(0, len(cases), size)]
        with reporting(cases, [call.out]) as (report, outcomes):
            pool = ActorPool(actors)
            for several in pool.map_unordered(
                lambda actor, cases: actor.predict.remote(cases, options), parts
            ):
                for outcome in several:
                    report(outcome)
    return outcomes


def _load(actors: Sequence[Any]) -> list[dict[str, Any]]:
    """Has all actors load, and says what the masks of each depend on."""
    import ray

    try:
        return ray.get(
            [actor.load.options(max_task_retries=0).remote() for actor in actors], timeout=_START_S
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[-1].strip()
        raise HnsegError(
            f"engine=ray: an actor cannot be started ({reason}); see that no other job holds the cluster, "
            "that memory suffices (fewer engine.workers), and that all nodes have one hnseg, Python and Ray"
        ) from error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Nothing is reported to Ray's makers, and a cluster of its own is nobody else's."""
    if find_spec("ray") is None:
        raise HnsegError("engine=ray: Ray is not installed; pip install 'hnseg[ray]', or set engine=local")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options: dict[str, Any] = {}
        if address == "local":
            if "ray" not in sys.modules:  # it reads its environment when it is imported
                # As on those systems, the loopback interface alone.
                os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
                os.environ.setdefault("RAY_AUTH_MODE", "token")
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # not kept in the home folder
            options = {"include_dashboard": False, "object_store_memory": _STORE, "_temp_dir": folder}
        import ray

        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # of a node that starts too slowly Ray raises no narrower class
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HnsegError(
                f"engine.address={address}: Ray cannot be reached or started ({reason})"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
