"""A case list that is stopped or killed: nothing half-written, and the next run goes on."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from again import NODE, cascade, statuses
from deadly import failing
from entry import ROOT
from fabricate import write_case
from members import DECISION, WHOLE, card, make_bundle
from results import contents, table

from hnseg.inference.cascade import Cascade
from hnseg.models.bundle import Bundle

KILLS = 20


class KilledError(BaseException):
    """Ends a run as nothing that the program may catch."""


def kill_at(count: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """The file system ends before or after the `count`-th file takes its place: nothing is tidied up."""
    rename, unlink, renamed = Path.replace, Path.unlink, []

    def replacing(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) > count or (len(renamed) == count and not after):
            raise KilledError
        moved = rename(self, target)
        if len(renamed) == count:
            raise KilledError
        return moved

    def unlinking(self: Path, missing_ok: bool = False) -> None:
        if len(renamed) >= count:
            raise KilledError
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "unlink", unlinking)


@pytest.mark.parametrize("after", [False, True])
def test_ended_between_any_two_files_no_line_speaks_of_another_mask(
    scans: Path, bundle: Bundle, tmp_path: Path, after: bool
) -> None:
    """An earlier run's masks hold nodes. Killed at any step, the next run's table never mixes them up."""
    other = make_bundle(tmp_path / "node", card("fine", "pointwise", NODE, grid=WHOLE, trained_on=["A", "B"]))
    statuses(scans, cascade(other), tmp_path / "old")
    statuses(scans, cascade(bundle), tmp_path / "new")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    assert old["cases.csv"]["A"]["unseen"] == "no"
    for count in range(1, 13):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"out-{count}")
        with pytest.MonkeyPatch.context() as patch:
            kill_at(count, patch, after=after)
            with pytest.raises(KilledError):
                statuses(scans, cascade(bundle), out)
        for name, row in contents(out)["cases.csv"].items():
            if row["status"] == "ok":
                made = [run for run in (old, new) if run["cases.csv"][name] == row]
                assert (out / f"{name}.nii.gz").read_bytes() == made[0][f"{name}.nii.gz"]
        assert set(statuses(scans, cascade(bundle), out).values()) <= {"ok", "skipped"}
        assert contents(out) == new


def test_ctrl_c_finishes_the_file_at_hand_and_the_next_run_goes_on(
    scans: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Cascade, "__call__", failing("B", KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            statuses(scans, cascade(bundle), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"A.nii.gz", "cases.csv", "lesions.csv"}
    assert {name: row["status"] for name, row in table(tmp_path / "out").items()} == {"A": "ok"}
    assert statuses(scans, cascade(bundle), tmp_path / "out") == {"A": "skipped", "B": "ok", "C": "ok"}


# infer.py in a fork for each line of arguments: importing takes far longer than the case list.
FORKS = """
import os, runpy, shlex, sys
import hnseg.hydra_app, hnseg.inference.backend, hnseg.inference.case_list, hnseg.training.fit
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        sys.argv, status = shlex.split(line), 1
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Infer:
    """infer.py, each call a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = [str(ROOT / "infer.py"), *arguments]
        self.forks = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            bufsize=0,
        )

    def __call__(self, out: Path, moment: float | None = None, *, amid: bool = False) -> float | None:
        """Kills it `moment` seconds after it touched `out`, or from then on `amid` the next file.

        Returns:
            The seconds it took from the first touch if it ended, else None.
        """
        out.mkdir(exist_ok=True)
        before = out.stat().st_mtime_ns
        self.forks.stdin.write(f"{shlex.join([*self.arguments, f'out={out}'])}\n".encode())
        child = int(self.forks.stdout.readline())
        while out.stat().st_mtime_ns == before and not self._ended(0):
            time.sleep(0.001)
        start = time.monotonic()
        if not self._ended(moment):
            while (
                amid and not self._ended(0) and not any(path.name.startswith(".") for path in out.iterdir())
            ):
                pass
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(child, signal.SIGKILL)
        took = time.monotonic() - start
        status = int(self.forks.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return took if status == 0 else None

    def close(self) -> None:
        """Ends the process that forks."""
        self.forks.communicate()

    def _ended(self, timeout: float | None) -> bool:
        return bool(select.select([self.forks.stdout], [], [], timeout)[0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_killed_at_random_moments_and_run_again_the_files_are_those_of_an_undisturbed_run(
    tmp_path: Path, backend: str
) -> None:
    """Moments are spread over the time between the first file and the last; every second is amid a file."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    for seed in range(8):
        write_case(tmp_path / "scans", f"A-{seed}", seed=seed)
    rules = DECISION | {"rule": "argmax", "min_component_ml": 2.0}  # a random network's speckle takes long
    member = card("fine", "plainconv", grid=WHOLE, decision=rules)
    places = [f"cases={tmp_path / 'scans'}", f"bundle={make_bundle(tmp_path, member).path}"]
    machine = ["trainer.device=cpu", "trainer.precision=float32", "trainer.threads=1", f"backend={backend}"]
    out = tmp_path / "out"
    with closing(Infer(*places, *machine)) as infer:
        span = infer(tmp_path / "whole")
        whole = contents(tmp_path / "whole")
        masks = [sitk.ReadImage(str(tmp_path / "whole" / f"A-{seed}.nii.gz")) for seed in range(8)]
        assert len({sitk.GetArrayFromImage(mask).tobytes() for mask in masks}) == 8
        draw, kills = np.random.default_rng(0), 0
        while kills < KILLS:
            if infer(out, draw.uniform(0, span), amid=kills % 2 == 1) is None:
                kills += 1
            else:
                assert contents(out) == whole
                shutil.rmtree(out)
        infer(out)
        assert contents(out) == whole
