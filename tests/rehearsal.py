"""The container of the Dockerfile without docker: its command and environment in a root of its own.

Root in that process's own namespaces lays the root out, of read-only mounts of this system: /input, /output,
/opt/ml/model and /tmp are the caller's folders, the last two to write to. There is no network, /dev/shm holds
64 MB, and the command runs as a user that the system has no name and no home for.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from entry import ROOT

USER = 4242
_LAY_OUT = """
set -eu
PATH=$PATH:/usr/sbin:/sbin  # users' paths may lack what chroot lies in
mount -t tmpfs -o mode=755 tmpfs "$root"
place() { mkdir -p "$root$2"; mount --bind -o "$3" "$1" "$root$2"; }
for path in /bin /sbin /lib /lib64; do
  if [ -L "$path" ]; then cp -P "$path" "$root$path"; elif [ -d "$path" ]; then place "$path" "$path" ro; fi
done
for path in /usr /etc /proc /sys; do place "$path" "$path" ro; done
mkdir "$root/dev"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/dev/shm"
place "$tmp" /tmp rw
place "$output" /output rw
place "$input" /input ro
place "$model" /opt/ml/model ro
for path in $python; do place "$path" "$path" ro; done
mount -o remount,ro "$root"
exec chroot --userspec="$user:$user" --groups= "$root" env -i "$@"
"""


@dataclass(frozen=True)
class Ended:
    """How a command in the container ended; `peak` is the most memory it had, bytes."""

    code: int
    stdout: str
    stderr: str
    peak: int


@dataclass(frozen=True)
class Rehearsal:
    """A container's folders, below one that is this test's alone.

    Args:
        folder: Holds `input`, `model`, `output` and `tmp`.
    """

    folder: Path

    def run(self, *command: str) -> Ended:
        """Runs a command in the container."""
        (self.folder / "root").mkdir(exist_ok=True)
        for name in ("output", "tmp"):
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name).chmod(0o777)
        places = {name: str(self.folder / name) for name in ("root", "input", "model", "output", "tmp")}
        # The interpreter, and hnseg where it is installed from its sources.
        prefixes = dict.fromkeys((sys.base_prefix, sys.prefix, str(ROOT)))
        python = " ".join(path for path in prefixes if not path.startswith("/usr"))
        given = [f"{name}={value}" for name, value in environment().items()]
        wrapped = [
            "timeout",
            "300",
            "unshare",
            "--mount",
            "--net",
            "sh",
            "-c",
            _LAY_OUT,
            "sh",
            *given,
            *command,
        ]
        out, err = self.folder / "stdout", self.folder / "stderr"
        with out.open("w") as stdout, err.open("w") as stderr:
            told = os.environ | places | {"python": python, "user": str(USER)}
            process = subprocess.Popen(wrapped, stdout=stdout, stderr=stderr, env=told)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return Ended(process.returncode, out.read_text(), err.read_text(), usage.ru_maxrss * 1024)


def environment() -> dict[str, str]:
    """What the Dockerfile sets, and nothing else; one thread, as in all tests."""
    (line,) = re.findall(r"^ENV (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    path = f"{sys.prefix}/bin:/usr/bin:/bin"
    return dict(pair.split("=", 1) for pair in line.split()) | {"PATH": path, "OMP_NUM_THREADS": "1"}


def entry_point() -> list[str]:
    """The Dockerfile's command."""
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return json.loads(line)


def impossible() -> str:
    """Why there can be no rehearsal here; empty where there can be one."""
    if os.getuid() != 0:
        return "only root may lay out a container's root"
    done = subprocess.run(
        ["unshare", "--mount", "--net", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() and f"namespaces and mounts are not permitted here: {done.stderr.strip()}"
