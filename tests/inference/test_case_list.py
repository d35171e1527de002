"""Case lists with good and bad cases: the good ones finish, the bad are named, nothing is half written."""

import csv
import gc
import gzip
from pathlib import Path
from threading import Event
from weakref import ref

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fabricate import ct_image, pet_image, volume, write_case
from results import table

from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, read_cases
from hnseg.inference import work
from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.case_list import segment_cases
from hnseg.inference.local_engine import LocalEngine
from hnseg.inference.outcome import Outcome
from hnseg.inference.record import Record
from hnseg.models.bundle import Bundle


@pytest.fixture
def cascade(bundle: Bundle) -> Cascade:
    return Cascade(bundle, torch.device("cpu"), "float32")


def segment(source: Path, cascade: Cascade, out: Path) -> dict[str, Outcome]:
    outcomes = segment_cases(read_cases(source, strict=False), LocalEngine([cascade]), out)
    return {outcome.case_id: outcome for outcome in outcomes}


def damage(root: Path) -> None:
    """One sound case and five that cannot be segmented."""
    for name in ("B-missing", "C-truncated", "F-headless"):
        write_case(root, name)
    write_case(root, "A-sound")
    (root / "B-missing" / "B-missing__PT.nii.gz").unlink()
    truncated = root / "C-truncated" / "C-truncated__CT.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    (root / "F-headless" / "F-headless__PT.nii.gz").write_bytes(gzip.compress(b"no image"))
    far = pet_image()
    far.SetOrigin((5000.0, 0.0, 0.0))
    write_case(root, "D-apart", pet=far)
    write_case(root, "E-becquerel", pet=pet_image() * 3000)
    write_case(root, "Z-sound")


def test_good_cases_finish_and_bad_ones_are_named(
    cascade: Cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(tmp_path / "scans")
    outcomes = segment(tmp_path / "scans", cascade, tmp_path / "out")
    bad = {"B-missing": "__PT.nii.gz", "C-truncated": "__CT.nii.gz", "D-apart": "overlap"}
    bad |= {"E-becquerel": "Bq/ml", "F-headless": "__PT.nii.gz"}
    for name, part in bad.items():
        assert outcomes[name].status == "error"
        assert part in outcomes[name].message
        assert len(outcomes[name].message.splitlines()) == 1
    assert {name for name, one in outcomes.items() if one.status == "ok"} == {"A-sound", "Z-sound"}
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"A-sound.nii.gz", "Z-sound.nii.gz", "cases.csv", "lesions.csv"}
    told = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert [line.split(":")[0] for line in told] == sorted(bad)


def test_cases_csv_says_what_became_of_each(cascade: Cascade, tmp_path: Path) -> None:
    damage(tmp_path / "scans")
    outcomes = segment(tmp_path / "scans", cascade, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert list(rows) == sorted(outcomes)
    for name, row in rows.items():
        assert (row["status"], row["message"]) == (outcomes[name].status, outcomes[name].message)
        assert float(row["seconds"]) >= 0


def test_the_next_case_is_read_and_the_last_written_while_the_networks_work(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case's networks wait for both neighbours: one thread alone would wait for ever."""
    names = ["A", "B", "C", "D"]
    for name in names:
        write_case(tmp_path / "scans", name)
    read, written, begun = {n: Event() for n in names}, {n: Event() for n in names}, []
    results: list[ref[Segmentation]] = []
    reading, taking, network = work.read_scan, Record.take, Cascade.__call__

    def read_scan(case: Case) -> tuple[sitk.Image, sitk.Image]:
        begun.append(case.case_id)
        images = reading(case)
        read[case.case_id].set()
        return images

    def take(self: Record, made: work.Made) -> Outcome:
        outcome = taking(self, made)
        written[outcome.case_id].set()
        return outcome

    def call(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> Segmentation:
        n = names.index(case_id)
        assert all(read[after].wait(20) for after in names[n + 1 : n + 2])
        assert all(written[before].wait(20) for before in names[:n][-1:])
        assert begun == names[: n + 2]
        gc.collect()
        assert not any(held() for held in results[: max(n - 1, 0)])  # memory stays flat
        result = network(self, ct, pet, case_id)
        results.append(ref(result))
        return result

    monkeypatch.setattr(work, "read_scan", read_scan)
    monkeypatch.setattr(Record, "take", take)
    monkeypatch.setattr(Cascade, "__call__", call)
    outcomes = segment(tmp_path / "scans", cascade, tmp_path / "out")
    assert [one.message for one in outcomes.values()] == [""] * 4
    assert list(outcomes) == names


def test_cases_csv_says_how_long_each_step_took_and_what_memory(cascade: Cascade, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A")
    segment(tmp_path / "scans", cascade, tmp_path / "out")
    row = table(tmp_path / "out")["A"]
    steps = {name: float(row[f"{name}_s"]) for name in ("read", "resample", "fine", "back", "write")}
    assert sum(steps.values()) == pytest.approx(float(row["seconds"]), abs=0.03)
    assert (row["head_s"], row["coarse_s"], row["gpu_mib"]) == ("", "", "")
    # Linux's own account of the process, which may have grown since.
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = [int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line]
        assert 0.5 * peak / 1024 < float(row["memory_mib"]) <= peak / 1024 + 1


def test_lesions_and_the_maps_asked_for_lie_beside_the_masks(cascade: Cascade, tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_case(tmp_path / "scans", name)
    out = tmp_path / "out"
    asked = Cascade(cascade.bundle, torch.device("cpu"), "float32", probabilities=True, uncertainty=True)
    segment(tmp_path / "scans", asked, out)
    maps = {path.name.removesuffix(".nii.gz"): sitk.ReadImage(str(path)) for path in out.glob("maps/A/*")}
    assert set(maps) == {"probability_GTVp", "probability_GTVn", "entropy", "mutual_information"}
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "A.nii.gz")))
    assert mask.any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(maps["probability_GTVp"]) >= 0.5, mask == 1)
    with (out / "lesions.csv").open(newline="") as file:
        assert [(row["case_id"], row["class"]) for row in csv.DictReader(file)] == [
            ("A", "GTVp"),
            ("B", "GTVp"),
        ]
    assert table(out)["A"]["look_first"] == ""
    (tmp_path / "scans" / "B" / "B__CT.nii.gz").unlink()
    segment(tmp_path / "scans", cascade, out)  # maps are not asked for any more, and B fails
    assert not [path for path in out.rglob("*") if path.is_file() and path.parent != out]
    with (out / "lesions.csv").open(newline="") as file:
        assert [row["case_id"] for row in csv.DictReader(file)] == ["A"]


def test_lines_of_an_older_table_stay_and_say_nothing_of_what_it_did_not_know(
    cascade: Cascade, tmp_path: Path
) -> None:
    write_case(tmp_path / "scans", "A")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cases.csv").write_text(
        "case_id,status,seconds,fallbacks,message\nold,ok,1.00,none,\n"
    )
    segment(tmp_path / "scans", cascade, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert rows["old"] | {"unseen": "", "outside_ml": "", "fallbacks": "none"} == rows["old"]
    assert (rows["A"]["status"], rows["A"]["unseen"], rows["A"]["outside_ml"]) == ("ok", "yes", "")


def test_the_mask_is_of_the_case(cascade: Cascade, tmp_path: Path) -> None:
    """The hot spot of the fabricated PET, SUV 12, lies at x, y 25 to 37 and z 41 to 56 mm."""
    write_case(tmp_path / "scans", "A")
    segment(tmp_path / "scans", cascade, tmp_path / "out")
    mask = sitk.ReadImage(str(tmp_path / "out" / "A.nii.gz"))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == ct_image().GetSize()
    index = np.argwhere(sitk.GetArrayFromImage(mask) == 1)[:, ::-1]
    middle = mask.TransformContinuousIndexToPhysicalPoint(index.mean(0).tolist())
    np.testing.assert_allclose(middle, (1 + 4 * 7, 1 + 4 * 7, 1 + 5 * 9), atol=2.5)


def test_metaimage_nifti_and_csv_lists_give_the_same_mask(cascade: Cascade, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A")
    for extension in ("mha", "nii"):
        sitk.WriteImage(ct_image(), str(tmp_path / f"ct.{extension}"))
        sitk.WriteImage(pet_image(), str(tmp_path / f"pet.{extension}"))
    (tmp_path / "list.csv").write_text(
        "case_id,ct,pt\nmha,ct.mha,pet.mha\nnii,ct.nii,pet.nii\nmixed,ct.nii,scans/A/A__PT.nii.gz\n"
    )
    segment(tmp_path / "scans", cascade, tmp_path / "out")
    segment(tmp_path / "list.csv", cascade, tmp_path / "out")
    masks = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (tmp_path / "out").glob("*.nii.gz")
    ]
    assert len(masks) == 4
    assert masks[0].any()
    assert all((mask == masks[0]).all() for mask in masks)
    assert list(table(tmp_path / "out")) == ["A", "mha", "mixed", "nii"]  # the first call's line stays


def test_names_that_look_like_markup_are_printed_as_they_are(
    cascade: Cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("case_id,ct,pet\n[red]A[bold],none.nii.gz,none.nii.gz\n")
    assert segment(tmp_path / "list.csv", cascade, tmp_path / "out")["[red]A[bold]"].status == "error"
    assert "[red]A[bold]: error" in capsys.readouterr().err


def test_warnings_and_fallbacks_are_told_but_do_not_fail(
    cascade: Cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thin = volume(sitk.GetArrayFromImage(ct_image())[:10], (2, 2, 3))
    write_case(tmp_path / "scans", "A", ct=thin, label=None)
    outcome = segment(tmp_path / "scans", cascade, tmp_path / "out")["A"]
    assert outcome.status == "ok"
    assert "30 mm" in outcome.message
    assert "A: ok: " in capsys.readouterr().err


def test_a_defect_costs_its_case_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "B"):
        write_case(tmp_path / "scans", name)
    work, calls = Cascade.__call__, []

    def fail_once(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> object:
        calls.append(ct)
        if len(calls) == 1:
            raise ZeroDivisionError("no\nvoxels")
        return work(self, ct, pet, case_id)

    monkeypatch.setattr(Cascade, "__call__", fail_once)
    outcomes = segment(tmp_path / "scans", cascade, tmp_path / "out")
    assert (outcomes["A"].status, outcomes["B"].status) == ("error", "ok")
    assert "ZeroDivisionError: no voxels (a defect" in outcomes["A"].message
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Exception from src/inference: std::bad_alloc"),
    ],
)
def test_a_lack_of_memory_is_no_defect(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cascade: Cascade,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    write_case(tmp_path / "scans", "A")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Cascade, "__call__", fail)
    message = segment(tmp_path / "scans", cascade, tmp_path / "out")["A"].message
    assert message.startswith("not enough memory (")
    assert "again with more of it free" in message
    assert "defect" not in message
    assert "Traceback" not in capsys.readouterr().err


def test_a_case_that_fails_now_does_not_keep_an_earlier_mask(cascade: Cascade, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A")
    segment(tmp_path / "scans", cascade, tmp_path / "out")
    (tmp_path / "scans" / "A" / "A__PT.nii.gz").unlink()
    segment(tmp_path / "scans", cascade, tmp_path / "out")
    assert table(tmp_path / "out")["A"]["status"] == "error"
    assert not (tmp_path / "out" / "A.nii.gz").exists()


def test_a_mask_that_cannot_be_written_leaves_nothing_behind(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "scans", "A")

    def full(image: sitk.Image, name: str, **settings: bool) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    outcome = segment(tmp_path / "scans", cascade, tmp_path / "out")["A"]
    assert "No space left" in outcome.message
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cases.csv", "lesions.csv"}


def test_an_output_that_is_a_file_is_told(cascade: Cascade, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A")
    (tmp_path / "out").touch()
    with pytest.raises(HnsegError, match=r"out=.*File exists"):
        segment(tmp_path / "scans", cascade, tmp_path / "out")


def test_what_stands_in_a_masks_place_ends_that_case_alone(cascade: Cascade, tmp_path: Path) -> None:
    """A first call makes the table; then a folder takes the place of one mask."""
    for name in ("A", "B"):
        write_case(tmp_path / "scans", name)
    segment(tmp_path / "scans", cascade, tmp_path / "out")
    mask = tmp_path / "out" / "A.nii.gz"
    mask.unlink()
    mask.mkdir()
    (mask / "notes.txt").write_text("mine")
    outcomes = segment(tmp_path / "scans", cascade, tmp_path / "out")
    assert (outcomes["A"].status, outcomes["B"].status) == ("error", "skipped")
    assert "A.nii.gz" in outcomes["A"].message
    assert (mask / "notes.txt").read_text() == "mine"


def test_masks_of_somebody_else_are_not_replaced_unasked(cascade: Cascade, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A")
    (tmp_path / "out").mkdir()
    drawn = tmp_path / "out" / "A.mha"
    drawn.write_bytes(b"drawn by hand")
    with pytest.raises(HnsegError, match=r"the files of A there are not as infer\.py wrote"):
        segment(tmp_path / "scans", cascade, tmp_path / "out")
    assert drawn.read_bytes() == b"drawn by hand"
    cases = read_cases(tmp_path / "scans")
    assert segment_cases(cases, LocalEngine([cascade]), tmp_path / "out", overwrite=True)[0].status == "ok"
