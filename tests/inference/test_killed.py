"""A case list that is stopped or killed: nothing half-written, and the next run goes on."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from again import NODE, cascade, statuses
from deadly import failing
from fabricate import write_case
from forked import Forked
from members import DECISION, WHOLE, card, make_bundle
from results import contents, table

from hnseg.imaging.case import Case
from hnseg.inference import work
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
    for count in range(1, 16):
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


@pytest.mark.parametrize("amid", ["reading", "networks"])
def test_a_case_that_ends_the_process_does_not_keep_the_others_from_their_masks(
    scans: Path, bundle: Bundle, tmp_path: Path, amid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """B is too much for the machine: the others come first, those that were at hand with it one by one."""
    read = work.read_scan

    def reading(case: Case) -> tuple[sitk.Image, sitk.Image]:
        if case.case_id == "B":
            raise KilledError
        return read(case)

    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            if amid == "reading":
                patch.setattr(work, "read_scan", reading)
            else:
                patch.setattr(Cascade, "__call__", failing("B", KilledError()))
            with pytest.raises(KilledError):
                statuses(scans, cascade(bundle), tmp_path / "out")
    assert "B: last, one by one" in capsys.readouterr().err
    rows = table(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {"A": "ok", "B": "begun again", "C": "ok"}
    assert statuses(scans, cascade(bundle), tmp_path / "out") == {"A": "skipped", "B": "ok", "C": "skipped"}


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
            else:
                assert contents(out) == whole
                shutil.rmtree(out)
        infer(out)
        assert contents(out) == whole
