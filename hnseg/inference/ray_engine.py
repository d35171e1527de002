"""A case list over a Ray cluster, or over processes of this machine. The only module that knows Ray."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from hnseg.devices import pick_device
from hnseg.errors import HnsegError
from hnseg.inference.lanes import Told
from hnseg.inference.outcome import Outcome
from hnseg.inference.provenance import Provenance
from hnseg.inference.setup import Setup
from hnseg.inference.work import Made, Work
from hnseg.models.bundle import LISTING


@dataclass(frozen=True)
class Share:
    """What each actor gets.

    Args:
        workers: Number of actors.
        device: Where their networks run.
        gpus: GPUs that Ray keeps for an actor.
        cpus: CPUs that Ray keeps for an actor.
        threads: Of its networks on the CPU.
    """

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
        workers: Number of actors; None is one a GPU, or on CPUs one a node.

    Raises:
        HnsegError: No number of actors, more than there is room for, or cuda without a GPU.
    """
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise HnsegError(f"engine.workers={workers}: give a number of 1 or more, or null")
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if device == "cuda" and not any(gpus):
        raise HnsegError("trainer.device=cuda, but no node of the Ray cluster has a GPU; choose auto or cpu")
    if device != "cpu" and any(gpus):
        _require_room(workers, sum(gpus), "GPUs")
        threads = min(cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu)
        return Share(workers or sum(gpus), "cuda", gpus=1, cpus=0, threads=max(threads, 1))
    _require_room(workers, sum(cpus), "CPUs")
    workers = workers or sum(count > 0 for count in cpus)
    # The most threads with which all of them find room.
    each = next(n for n in range(max(cpus), 0, -1) if sum(count // n for count in cpus) >= workers)
    return Share(workers, "cpu" if device == "auto" else device, gpus=0, cpus=each, threads=each)


def _require_room(workers: int | None, room: int, what: str) -> None:
    if (workers or 1) > room:
        raise HnsegError(f"engine.workers={workers}: the Ray cluster has {room} {what}; set it to no more")


CASES_EACH = 2  # on an actor: one with the networks while the other is read or written


class Actor:
    """One loaded ensemble in a process of its own; Ray calls it from `CASES_EACH` threads.

    Args:
        setup: What to load.
        device: Where its networks run: cpu or cuda.
        folder: The caller's working directory, which paths may be relative to.
    """

    def __init__(self, setup: Setup, device: str, folder: Path) -> None:
        self._setup, self._device, self._folder = setup, device, folder
        self._one_at_a_time: AbstractContextManager[Any] = Lock()

    def load(self) -> Provenance:
        """Loads the ensemble, and says what its masks are made with.

        Raises:
            HnsegError: The node does not reach the bundle, or what `Setup.load` refuses.
        """
        with suppress(OSError):  # a node may reach absolute paths alone
            os.chdir(self._folder)
        if not (self._setup.bundle / LISTING).exists():
            raise HnsegError(
                f"bundle={self._setup.bundle}: not there on {socket.gethostname()}; each node of the cluster "
                "must reach bundle, scans and out: put them on storage that all nodes mount"
            )
        (self._cascade,) = self._setup.load([pick_device(self._device)])
        if self._cascade.networks.device.type == "cuda":  # as `LocalEngine` has it
            self._one_at_a_time = nullcontext()
        return Provenance.of(self._cascade)

    def segment(self, work: Work) -> Made:
        """Takes a case from its files to its mask."""
        work.read()
        with self._one_at_a_time:
            work.segment(self._cascade)
        return work.save()


TRIES = 3
START_S = 600.0  # how long to wait for actors while there is none
STORE = 80 * 2**20  # bytes of shared memory, near Ray's least: only paths and lines of tables travel
LOST = f"its process died {TRIES} times, twice with no other case beside it; most likely it needs more memory"


@contextmanager
def ray_engine(
    setup: Setup, device: str = "auto", workers: int | None = None, address: str = "local"
) -> Iterator[RayEngine]:
    """Joins or starts a cluster and loads the actors; leaving it ends them.

    Args:
        setup: What each actor loads.
        device: auto, cpu or cuda.
        workers: Actors; None is one a GPU, or on CPUs one a node.
        address: `local` starts Ray for this call, on this machine's loopback interface alone; `auto` or
            HOST:PORT joins a cluster.

    Raises:
        HnsegError: Ray is not installed or not reached, the cluster is too small, or an actor cannot load.
    """
    with _connected(address):
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield RayEngine(setup, share(nodes, device, workers))


class RayEngine:
    """Actors that are given case after case.

    An actor that dies is replaced, and what it had in hand is tried again, alone and after the others: a case
    that is too large for the memory takes no other with it. After `TRIES` times it is told as lost.

    Args:
        setup: What each actor loads.
        one: How many actors there are, and what each may use.

    Raises:
        HnsegError: An actor cannot load, or the nodes would make different masks.
    """

    def __init__(self, setup: Setup, one: Share) -> None:
        import ray

        self._ray = ray
        self._class = ray.remote(Actor).options(
            num_cpus=one.cpus,
            num_gpus=one.gpus,
            max_concurrency=CASES_EACH,
            scheduling_strategy="SPREAD",
        )
        self._arguments = replace(setup, threads=setup.threads or one.threads), one.device, Path.cwd()
        self._actors = [self._start() for _ in range(one.workers)]
        self._under_way: dict[Any, tuple[Any, Work | None]] = {}  # a case, or an actor that loads
        self._deaths: Counter[str] = Counter()
        self.provenance = Provenance.common(self._load())

    def _load(self) -> list[Provenance]:
        """Has all actors load, and says what the masks of each are made with."""
        try:
            return self._ray.get([actor.load.remote() for actor in self._actors], timeout=START_S)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            reason = str(error).splitlines()[-1].strip()
            raise HnsegError(
                f"engine=ray: an actor cannot be started ({reason}); see that no other job holds the "
                "cluster, that memory suffices (fewer engine.workers), and that all nodes have one "
                "hnseg, Python and Ray"
            ) from error

    def run(self, works: Sequence[Work], told: Told[Made]) -> None:
        """Takes every case from its files to its mask.

        Args:
            works: The cases.
            told: Of every case; its networks begin when an actor is given it.

        Raises:
            HnsegError: All actors have died, and no other can be started.
        """
        waiting = deque(works)
        try:
            while waiting or self._in_hand():
                self._hand_out(waiting, told)
                self._take(self._ended(), waiting, told.done)
        except BaseException:
            self._ray.shutdown()  # so that nobody writes any more when the folder is left
            raise

    def _start(self) -> Any:
        return self._class.remote(*self._arguments)

    def _ended(self) -> Any:
        """What has come to an end next."""
        references = list(self._under_way)
        patience = None if self._in_hand() else START_S
        ready = self._ray.wait(references, timeout=patience)[0] if references else []
        if not ready:
            raise HnsegError("engine=ray: no actor is left; free memory, or set fewer engine.workers")
        return ready[0]

    def _in_hand(self, actor: Any = None) -> list[Work]:
        """The cases that are under way, of one actor or of all."""
        return [work for its, work in self._under_way.values() if work and actor in (None, its)]

    def _hand_out(self, waiting: deque[Work], told: Told[Made]) -> None:
        """Gives the next cases to those who have least to do."""
        while waiting:
            free = [actor for actor in self._actors if self._may_take(actor, waiting[0])]
            if not free:
                return
            actor, work = min(free, key=lambda actor: len(self._in_hand(actor))), waiting.popleft()
            told.take_up(work.case.case_id)
            told.begin(work.case.case_id)
            self._under_way[actor.segment.remote(work)] = actor, work

    def _may_take(self, actor: Any, work: Work) -> bool:
        here = self._in_hand(actor)
        alone = any(self._deaths[one.case.case_id] for one in [*here, work])
        return len(here) < (1 if alone else CASES_EACH)

    def _take(self, ready: Any, waiting: deque[Work], done: Callable[[Made], None]) -> None:
        """What has come of a case, or of loading an actor."""
        actor, work = self._under_way.pop(ready)
        if work is None:
            with suppress(HnsegError):  # an actor that cannot make the same masks is done without
                if self._answer(ready) == self.provenance:
                    self._actors.append(actor)
            return
        made = self._answer(ready)
        if made is None:
            self._replace(actor)
            self._deaths[work.case.case_id] += 1
            if self._deaths[work.case.case_id] < TRIES:
                waiting.append(work)
                return
            made = Made(Outcome(work.case.case_id, "error", message=LOST))
        done(made)

    def _replace(self, actor: Any) -> None:
        if actor in self._actors:  # else it died with two cases in hand
            self._actors.remove(actor)
            self._ray.kill(actor)  # it may only be out of reach
            new = self._start()
            self._under_way[new.load.remote()] = new, None

    def _answer(self, reference: Any) -> Any:
        """What an actor answers, or the error it raises; None where it has died."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError:
            return None


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
                os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
                    "0"  # as there, the loopback interface alone
                )
                os.environ.setdefault("RAY_AUTH_MODE", "token")
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # not kept in the home folder
            options = {"include_dashboard": False, "object_store_memory": STORE, "_temp_dir": folder}
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
