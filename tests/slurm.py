"""A SLURM cluster of one node, for the time of a test: daemons, state and sockets of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
# A job that is requeued may start once its former credential has expired: after two minutes by default.
_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=100000
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def lacking() -> str | None:
    """Why there can be no cluster here, None where there can."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"apt-get install slurmctld slurmd slurm-client munge: no {', '.join(missing)}"
    return None if os.geteuid() == 0 else "slurmd must be started as root"


@contextmanager
def cluster(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Starts a cluster in a folder, and stops it with the jobs that it still has.

    Args:
        folder: Of its configuration, state and logs; not there yet.
        cpus: Of its node, whatever the machine has.

    Yields:
        The environment variables with which SLURM's commands find it.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(_CONFIG.format(host=host, ports=_free_ports(2), folder=folder, cpus=cpus))
    environment = {"SLURM_CONF": str(config)}
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with ExitStack() as stack:
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D", "-f", str(config)],
            ["slurmd", "-D", "-f", str(config)],
        ):
            stack.enter_context(_daemon(command, folder / f"{command[0]}.out", environment))
        stack.callback(_end_jobs, environment)
        _wait(lambda: "idle" in slurm(environment, "sinfo", "-h", "-o", "%T"), folder)
        yield environment


def slurm(environment: dict[str, str], *command: str) -> str:
    """What one of SLURM's commands prints."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    return done.stdout


def jobs(environment: dict[str, str]) -> list[str]:
    """Ids of the jobs that wait or run."""
    return slurm(environment, "squeue", "-h", "-r", "-o", "%A").split()


def _end_jobs(environment: dict[str, str]) -> None:
    if left := jobs(environment):
        slurm(environment, "scancel", *left)
        _wait(lambda: not jobs(environment), Path(environment["SLURM_CONF"]).parent)


@contextmanager
def _daemon(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=300)


def _wait(done: Callable[[], bool], folder: Path, seconds: float = 90) -> None:
    limit = time.monotonic() + seconds
    while not done():
        if time.monotonic() > limit:
            tails = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.out")))
            raise TimeoutError(f"SLURM in {folder} does not answer:\n{tails}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
