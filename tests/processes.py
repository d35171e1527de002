"""Processes as Linux's /proc has them."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def descendants(ancestor: int) -> dict[int, str]:
    """The command lines of all processes below one, by process id."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    below, found = {ancestor}, set()
    while below:
        below = {pid for pid, parent in parents.items() if parent in below}
        found |= below
    return {pid: commands[pid] for pid in found}


def all_end(pids: Iterable[int], seconds: float = 60) -> bool:
    """Whether all of them end, within a time."""
    left, limit = set(pids), time.monotonic() + seconds
    while left and time.monotonic() < limit:
        left = {pid for pid in left if _runs(pid)}
        time.sleep(0.05)
    return not left


def listening(pids: Iterable[int]) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which TCP sockets of the processes listen."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(str(link.readlink()))
    found = set()
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, only nobody has asked how
