"""A case list that is stopped, killed or shared by processes: nothing half-written, and the next goes on."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from again import NODE, outcomes, statuses
from deadly import failing
from fabricate import write_case
from forked import Forked
from members import DECISION, WHOLE, card, make_bundle, make_cascade
from results import contents, record, table

from hnseg.inference import predict_cases as loop
from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.ensemble import LogitsCache
from hnseg.models.bundle import Bundle

KILLS = 20


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a forked process that does this."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_at(count: int, *, after: bool) -> None:
    """The process ends before or after the `count`-th file takes its place."""
    rename, renamed = Path.replace, []

    def replacing(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        moved = rename(self, target)
        if len(renamed) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.replace = replacing  # type: ignore[method-assign]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.slow
def test_killed_between_any_two_files_no_record_speaks_of_another_mask(
    scans: Path, bundle: Bundle, tmp_path: Path, after: bool
) -> None:
    """An earlier run's masks hold nodes. Killed at any step, the next run never mixes them up."""
    other = make_bundle(tmp_path / "node", card("fine", "pointwise", NODE, grid=WHOLE, trained_on=["A", "B"]))
    statuses(scans, make_cascade(other), tmp_path / "old")
    statuses(scans, make_cascade(bundle), tmp_path / "new")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    assert not old["A.json"]["out_of_fold"]
    kills = 0
    for count in range(1, 30):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"out-{count}")

        def killed(out: Path = out, count: int = count) -> None:
            kill_at(count, after=after)
            statuses(scans, make_cascade(bundle), out)

        if in_child(killed) == 0:
            break
        kills += 1
        for name in "ABC":
            if (out / f"{name}.json").exists():
                found = contents(out)[f"{name}.json"]
                (made,) = [run for run in (old, new) if run[f"{name}.json"] == found]
                assert (out / f"{name}.nii.gz").read_bytes() == made[f"{name}.nii.gz"]
        assert set(statuses(scans, make_cascade(bundle), out).values()) <= {"ok", "skipped"}
        assert contents(out) == new
    assert kills >= 15  # five files a case


def kill_amid(patch: pytest.MonkeyPatch, amid: str) -> None:
    """The process ends while B is read, or in its networks."""
    read, segment = loop.read_scan, Cascade.__call__

    def reading(case):
        if case.case_id == "B":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(case)

    def call(
        self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str, cache: LogitsCache | None
    ) -> Segmentation:
        if case_id == "B":
            os.kill(os.getpid(), signal.SIGKILL)
        return segment(self, ct, pet, case_id, cache)

    if amid == "reading":
        patch.setattr(loop, "read_scan", reading)
    else:
        patch.setattr(Cascade, "__call__", call)


@pytest.mark.parametrize("amid", ["reading", "networks"])
def test_a_case_that_twice_ended_its_process_is_an_error_and_the_others_finish(
    scans: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amid: str
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        kill_amid(patch, amid)
        for _ in range(2):
            assert in_child(lambda: statuses(scans, make_cascade(bundle), out)) == signal.SIGKILL
        for _ in range(2):
            found = outcomes(scans, make_cascade(bundle), out)
            assert [one.case_id for one in found.values() if one.status == "error"] == ["B"]
    assert {path.name for path in out.glob("?.nii.gz")} == {"A.nii.gz", "C.nii.gz"}
    assert "its process ended 2 times" in table(out)["B"]["message"]
    assert record(out, "B")["status"] == "error"
    assert statuses(scans, make_cascade(bundle), out, overwrite=True)["B"] == "ok"
    assert not list(out.glob(".*"))


def test_ctrl_c_finishes_the_file_at_hand_and_counts_as_no_attempt(
    scans: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(Cascade, "__call__", failing("B", KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                statuses(scans, make_cascade(bundle), out)
        assert {path.name for path in out.iterdir()} == {"A.nii.gz", "A.json", "cases.csv", "lesions.csv"}
        assert {name: row["status"] for name, row in table(out).items()} == {"A": "ok"}
    assert statuses(scans, make_cascade(bundle), out) == {"A": "skipped", "B": "ok", "C": "ok"}


def test_processes_on_one_folder_share_its_cases(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three at once, each case by one of them; and each ends though others have cases at hand."""
    for seed in range(12):
        write_case(tmp_path / "scans", f"A-{seed:02}", seed=seed)
    statuses(tmp_path / "scans", make_cascade(bundle), tmp_path / "one")
    segment, out = Cascade.__call__, tmp_path / "out"
    out.mkdir()
    together = multiprocessing.get_context("fork").Barrier(3)

    def call(
        self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str, cache: LogitsCache | None
    ) -> Segmentation:
        with (tmp_path / "seen.txt").open("a") as file:
            file.write(f"{case_id} {os.getpid()}\n")
        if not waited:
            waited.append(together.wait(120))
        return segment(self, ct, pet, case_id, cache)

    waited = list[int]()
    monkeypatch.setattr(Cascade, "__call__", call)
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            statuses(tmp_path / "scans", make_cascade(bundle), out)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    seen = [line.split() for line in (tmp_path / "seen.txt").read_text().splitlines()]
    assert sorted(case_id for case_id, _ in seen) == [f"A-{seed:02}" for seed in range(12)]
    assert len({pid for _, pid in seen}) == 3
    assert contents(out) == contents(tmp_path / "one")


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
    with closing(Forked("infer.py", *places, *machine)) as forked:

        def infer(out: Path, moment: float | None = None, *, amid: bool = False) -> float | None:
            return forked(out, f"out={out}", moment=moment, amid=amid)

        span = infer(tmp_path / "whole")
        whole = contents(tmp_path / "whole")
        masks = [sitk.ReadImage(str(tmp_path / "whole" / f"A-{seed}.nii.gz")) for seed in range(8)]
        assert len({sitk.GetArrayFromImage(mask).tobytes() for mask in masks}) == 8
        draw, kills = np.random.default_rng(0), 0
        while kills < KILLS:
            if infer(out, draw.uniform(0, span), amid=kills % 2 == 1) is None:
                kills += 1
                infer(out)
                assert contents(out) == whole
            shutil.rmtree(out)
