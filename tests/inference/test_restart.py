"""A case list that is stopped, killed or run again: nothing half-written, nothing stale, nothing twice."""

import fcntl
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from entry import ROOT
from fabricate import ct_image, write_case
from members import DECISION, card, make_bundle
from results import contents, table

from hnseg.cases import read_cases
from hnseg.errors import HnsegError
from hnseg.inference.cascade import Cascade
from hnseg.inference.case_list import segment_cases
from hnseg.inference.local_engine import LocalEngine
from hnseg.inference.segmentation import Segmentation
from hnseg.models.bundle import Bundle

# SUV above 4 is a tumour in one bundle, a node in the other.
TUMOUR = {"weights": [[0.0, 0.0], [0.0, 400.0], [0.0, 0.0]], "biases": [0.0, -80.0, -500.0]}
NODE = {"weights": [[0.0, 0.0], [0.0, 0.0], [0.0, 400.0]], "biases": [0.0, -500.0, -80.0]}
WHOLE = {"placement": "scan", "size": [32] * 3, "spacing": [3.0] * 3}
NAMES = ("A", "B", "C")


@pytest.fixture
def bundle(pointwise: None, tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "tumour", card("fine", "pointwise", TUMOUR, grid=WHOLE))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_case(tmp_path / "scans", name, seed=seed)
    return tmp_path / "scans"


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that the networks saw."""
    work, seen = Cascade.__call__, []

    def call(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> Segmentation:
        seen.append(case_id)
        return work(self, ct, pet, case_id)

    monkeypatch.setattr(Cascade, "__call__", call)
    return seen


def cascade(bundle: Bundle, **settings: Any) -> Cascade:
    return Cascade(bundle, torch.device("cpu"), "float32", **settings)


def statuses(source: Path, stages: Cascade, out: Path, **settings: Any) -> dict[str, str]:
    outcomes = segment_cases(read_cases(source, strict=False), LocalEngine([stages]), out, **settings)
    return {outcome.case_id: outcome.status for outcome in outcomes}


def test_a_second_run_touches_nothing(
    scans: Path, bundle: Bundle, tmp_path: Path, networks: list[str]
) -> None:
    out = tmp_path / "out"
    assert statuses(scans, cascade(bundle), out) == dict.fromkeys(NAMES, "ok")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    networks.clear()
    assert statuses(scans, cascade(bundle), out) == dict.fromkeys(NAMES, "skipped")
    assert not networks
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    assert statuses(scans, cascade(bundle), out, overwrite=True) == dict.fromkeys(NAMES, "ok")
    assert networks == list(NAMES)


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000))


def other_pet(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.with_name("B").parent.parent.joinpath("B", "B__PT.nii.gz").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def spoil(lesions: Path) -> None:
    lesions.write_text(lesions.read_text().replace("A,1,GTVp", "A,1,GTVn"))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: touch(root / "scans" / "A" / "A__CT.nii.gz"),
        lambda root: other_pet(root / "scans" / "A" / "A__PT.nii.gz"),
        lambda root: (root / "scans" / "A" / "A__PT.json").write_text('{"Modality": "PT"}'),
        lambda root: (root / "out" / "A.nii.gz").unlink(),
        lambda root: sitk.WriteImage(ct_image() * 0, str(root / "out" / "A.nii.gz")),
        lambda root: spoil(root / "out" / "lesions.csv"),
    ],
    ids=["CT touched", "other PET", "sidecar", "mask gone", "another mask", "another lesion"],
)
def test_one_changed_file_costs_its_case_alone(
    scans: Path, bundle: Bundle, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    statuses(scans, cascade(bundle), tmp_path / "out")
    change(tmp_path)
    again = statuses(scans, cascade(bundle), tmp_path / "out")
    assert again == {"A": "ok", "B": "skipped", "C": "skipped"}
    statuses(scans, cascade(bundle), tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_factor_for_the_pet_makes_another_case(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    lines = [
        "case_id,ct,pet,pet_factor",
        *(f"{n},scans/{n}/{n}__CT.nii.gz,scans/{n}/{n}__PT.nii.gz," for n in "AB"),
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    statuses(tmp_path / "list.csv", cascade(bundle), tmp_path / "out")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "1.5")
    again = statuses(tmp_path / "list.csv", cascade(bundle), tmp_path / "out")
    assert again == {"A": "skipped", "B": "ok"}


def test_other_networks_rules_or_settings_segment_all_cases_again(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "node", card("fine", "pointwise", NODE, grid=WHOLE))
    ruled = replace(bundle, decision=DECISION | {"min_component_ml": 0.5})
    changed = [cascade(other), cascade(ruled), cascade(bundle, mirror=True), cascade(bundle, unseen=True)]
    for stages in changed:
        assert set(statuses(scans, cascade(bundle), tmp_path / "out").values()) == {"ok"}
        assert set(statuses(scans, stages, tmp_path / "out").values()) == {"ok"}


def test_another_head_mask_is_another_case(pointwise: None, scans: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    for name in NAMES:
        label = sitk.ReadImage(str(scans / name / f"{name}.nii.gz"))
        sitk.WriteImage(label, str(heads / f"{name}.nii.gz"))
    stages = cascade(
        make_bundle(tmp_path / "coarse", card("coarse", "pointwise", TUMOUR)), until="coarse", heads=heads
    )
    statuses(scans, stages, tmp_path / "out")
    touch(heads / "B.nii.gz")
    assert statuses(scans, stages, tmp_path / "out") == {"A": "skipped", "B": "ok", "C": "skipped"}


def test_a_case_that_failed_is_tried_again(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    pet = scans / "B" / "B__PT.nii.gz"
    hidden = pet.rename(tmp_path / "pet.nii.gz")
    assert statuses(scans, cascade(bundle), tmp_path / "out") == {"A": "ok", "B": "error", "C": "ok"}
    hidden.rename(pet)
    assert statuses(scans, cascade(bundle), tmp_path / "out") == {"A": "skipped", "B": "ok", "C": "skipped"}


def test_masks_of_one_format_take_the_place_of_the_others(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    statuses(scans, cascade(bundle), out)
    first = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "A.nii.gz")))
    assert set(statuses(scans, cascade(bundle), out, extension=".mha").values()) == {"ok"}
    assert {path.name for path in out.glob("?.*")} == {f"{name}.mha" for name in NAMES}
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "A.mha"))), first)
    assert first.any()


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
    work = Cascade.__call__

    def stopped(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> Segmentation:
        if case_id == "B":
            raise KeyboardInterrupt
        return work(self, ct, pet, case_id)

    with monkeypatch.context() as patch:
        patch.setattr(Cascade, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            statuses(scans, cascade(bundle), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"A.nii.gz", "cases.csv", "lesions.csv"}
    assert {name: row["status"] for name, row in table(tmp_path / "out").items()} == {"A": "ok"}
    assert statuses(scans, cascade(bundle), tmp_path / "out") == {"A": "skipped", "B": "ok", "C": "ok"}


def test_leftovers_of_a_killed_run_go_and_other_files_stay(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (f".{'0a' * 16}.nii.gz", f".{'b1' * 16}.csv", ".hidden", "notes.txt"):
        (out / name).touch()
    statuses(scans, cascade(bundle), out)
    assert {path.name for path in out.iterdir()} - {f"{name}.nii.gz" for name in NAMES} == {
        ".hidden",
        "notes.txt",
        "cases.csv",
        "lesions.csv",
    }


def test_a_folder_that_another_process_writes_to_is_refused(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    held = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(HnsegError, match=r"out: another process writes there"):
        statuses(scans, cascade(bundle), tmp_path / "out")
    os.close(held)
    assert set(statuses(scans, cascade(bundle), tmp_path / "out").values()) == {"ok"}


@pytest.mark.parametrize("text", ["case_id,ct,pet\nA,a,b\n", "case_id\xff"])
def test_a_table_of_something_else_is_not_replaced(
    scans: Path, bundle: Bundle, tmp_path: Path, text: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cases.csv").write_text(text, encoding="latin-1")
    with pytest.raises(HnsegError, match=r"cases\.csv: .*choose another folder for out"):
        statuses(scans, cascade(bundle), tmp_path / "out")
    assert (tmp_path / "out" / "cases.csv").read_text(encoding="latin-1") == text


def test_a_mask_never_takes_an_images_place(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    truth = (scans / "A" / "A.nii.gz").read_bytes()
    with pytest.raises(HnsegError, match=r"out=.*A\.nii\.gz is an image of the case list"):
        statuses(scans, cascade(bundle), scans / "A")
    assert (scans / "A" / "A.nii.gz").read_bytes() == truth


KILLS = 20

# infer.py in a fork for each line of arguments: importing takes far longer than the case list.
FORKS = """
import os, runpy, shlex, sys
import hnseg.hydra_app, hnseg.inference.backend, hnseg.inference.case_list, hnseg.training
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
