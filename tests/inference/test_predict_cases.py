"""Case lists with good and bad cases: the good ones finish, the bad are named, nothing is half written."""

import csv
import gc
import gzip
import json
from pathlib import Path
from threading import Barrier, Event
from weakref import ref

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from again import NAMES, outcomes, statuses
from deadly import failing
from fabricate import ct_image, pet_image, write_case
from members import make_cascade
from results import contents, record, table

from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, read_cases, take_shard
from hnseg.inference import predict_cases as loop
from hnseg.inference import records
from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.ensemble import LogitsCache
from hnseg.models.bundle import Bundle


def damage(root: Path) -> None:
    """Two sound cases and five that cannot be segmented."""
    for name in ("A-sound", "B-missing", "C-truncated", "F-headless", "Z-sound"):
        write_case(root, name)
    (root / "B-missing" / "B-missing__PT.nii.gz").unlink()
    truncated = root / "C-truncated" / "C-truncated__CT.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    (root / "F-headless" / "F-headless__PT.nii.gz").write_bytes(gzip.compress(b"no image"))
    far = pet_image()
    far.SetOrigin((5000.0, 0.0, 0.0))
    write_case(root, "D-apart", pet=far)
    write_case(root, "E-becquerel", pet=pet_image() * 3000)


def test_the_tables_are_the_records(bundle: Bundle, tmp_path: Path) -> None:
    damage(tmp_path / "scans")
    out = tmp_path / "out"
    found = outcomes(tmp_path / "scans", make_cascade(bundle, out_of_fold=True), out)
    rows = table(out)
    assert list(rows) == sorted(found)
    for name, row in rows.items():
        written = record(out, name)
        assert (row["status"], row["message"]) == (found[name].status, found[name].message)
        assert (row["status"], row["message"]) == (written["status"], written["message"])
        assert float(row["seconds"]) == pytest.approx(sum(written["seconds"].values()), abs=0.01)
        assert not any(cell.startswith(("{", "[")) for cell in row.values())
    sound = record(out, "A-sound")
    assert (sound["rules"]["rule"], sound["stage"], sound["fallbacks"]) == ("half", "fine", [])
    assert sound["roi"][0]["size"] == [32, 32, 32]
    assert (rows["A-sound"]["out_of_fold"], rows["A-sound"]["lesions"]) == ("yes", "1")
    assert (rows["B-missing"]["out_of_fold"], rows["B-missing"]["lesions"]) == ("", "")
    with (out / "lesions.csv").open(newline="") as file:
        lesions = list(csv.DictReader(file))
    assert [row["case_id"] for row in lesions] == ["A-sound", "Z-sound"]
    assert float(lesions[0]["volume_ml"]) == pytest.approx(sound["lesions"][0]["volume_ml"], abs=0.001)


def test_records_of_other_calls_stay_in_the_tables(bundle: Bundle, scans: Path, tmp_path: Path) -> None:
    """And what is no record is passed over."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.json").write_text('{"status": "ok"}')
    write_case(tmp_path / "more", "D")
    statuses(scans, make_cascade(bundle), out)
    statuses(tmp_path / "more", make_cascade(bundle), out)
    assert list(table(out)) == ["A", "B", "C", "D"]


def test_the_next_case_is_read_and_the_last_written_while_the_networks_work(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case's networks wait for both neighbours: one thread alone would wait for ever."""
    names = ["A", "B", "C", "D"]
    for name in names:
        write_case(tmp_path / "scans", name)
    read, begun, results = {n: Event() for n in names}, list[str](), list[ref[Segmentation]]()
    reading, network, out = loop.read_scan, Cascade.__call__, tmp_path / "out"

    def read_scan(case: Case) -> tuple[sitk.Image, sitk.Image]:
        begun.append(case.case_id)
        images = reading(case)
        read[case.case_id].set()
        return images

    def call(
        self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str, cache: LogitsCache | None
    ) -> Segmentation:
        n = names.index(case_id)
        assert all(read[after].wait(20) for after in names[n + 1 : n + 2])
        for before in names[:n][-1:]:
            while not (out / f"{before}.json").exists():
                Event().wait(0.01)
        assert begun == names[: n + 2]
        gc.collect()
        assert not any(held() for held in results[: max(n - 1, 0)])  # memory stays flat
        result = network(self, ct, pet, case_id, cache)
        results.append(ref(result))
        return result

    monkeypatch.setattr(loop, "read_scan", read_scan)
    monkeypatch.setattr(Cascade, "__call__", call)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = outcomes(tmp_path / "scans", make_cascade(bundle), out)
    assert {one.status for one in found.values()} == {"ok"}


def test_the_maps_asked_for_lie_beside_the_masks(bundle: Bundle, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    statuses(scans, make_cascade(bundle, probabilities=True, uncertainty=True), out)
    maps = {path.name.removesuffix(".nii.gz"): sitk.ReadImage(str(path)) for path in out.glob("maps/A/*")}
    assert set(maps) == {"probability_GTVp", "probability_GTVn", "entropy", "mutual_information"}
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "A.nii.gz")))
    assert mask.any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(maps["probability_GTVp"]) >= 0.5, mask == 1)
    (out / "maps" / "A" / "notes.txt").write_text("mine")
    (scans / "B" / "B__CT.nii.gz").unlink()
    statuses(scans, make_cascade(bundle), out)  # maps are not asked for any more, and B fails
    assert [path.name for path in out.rglob("*") if path.is_file() and path.parent != out] == ["notes.txt"]
    assert not (out / "B.nii.gz").exists()
    with (out / "lesions.csv").open(newline="") as file:
        assert [row["case_id"] for row in csv.DictReader(file)] == ["A", "C"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("no\nvoxels"), "ZeroDivisionError: no voxels (a defect"),
        (MemoryError(), "not enough memory ("),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "not enough memory ("),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . can't allocate memory"), "not enough memory ("),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), "not enough memory ("),
    ],
)
def test_an_error_of_the_networks_costs_its_case_alone(
    bundle: Bundle,
    scans: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(Cascade, "__call__", failing("A", error))
    found = outcomes(scans, make_cascade(bundle), tmp_path / "out")
    assert [one.status for one in found.values()] == ["error", "ok", "ok"]
    assert found["A"].message.startswith(message)
    assert ("Traceback" in capsys.readouterr().err) == ("defect" in message)


def test_a_mask_that_cannot_be_written_leaves_nothing_behind(
    bundle: Bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: sitk.Image, path: Path) -> None:
        path.write_bytes(b"half")
        raise HnsegError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(loop, "write_image", full)
    found = outcomes(scans, make_cascade(bundle), tmp_path / "out")
    assert all("No space left" in one.message for one in found.values())
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"cases.csv", "lesions.csv", *(f"{name}.json" for name in NAMES)}


def test_a_folder_that_cannot_be_written_ends_the_call(
    bundle: Bundle, scans: Path, tmp_path: Path, networks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both devices: each has at most the case at hand and the one read meanwhile."""
    for seed in range(8, 24):
        write_case(scans, f"D-{seed:02}", seed=seed)

    def full(*_: object) -> None:
        raise HnsegError("out/A.json: cannot be written (No space left on device)")

    monkeypatch.setattr(loop.CaseFiles, "place", full)
    devices = [{tmp_path / "out": make_cascade(bundle)} for _ in range(2)]
    with pytest.raises(HnsegError, match="No space left"):
        loop.predict_cases(read_cases(scans), devices)
    assert len(networks) <= 6
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cases.csv", "lesions.csv"}


def test_folders_that_cannot_serve_are_refused(bundle: Bundle, scans: Path, tmp_path: Path) -> None:
    """A file, a folder in which a mask would take an image's place, and one that holds other tables."""
    (tmp_path / "file").touch()
    with pytest.raises(HnsegError, match=r"out=.*File exists"):
        statuses(scans, make_cascade(bundle), tmp_path / "file")
    with pytest.raises(HnsegError, match=r"out=.*A\.nii\.gz is an image of the case list"):
        statuses(scans, make_cascade(bundle), scans / "A", overwrite=True)
    for name, text in (("cases.csv", "case_id,ct,pet\nA,a,b\n"), ("lesions.csv", "patient;size\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(HnsegError, match=rf"{name}: .*choose another folder for out"):
            statuses(scans, make_cascade(bundle), tmp_path)
        assert (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()


def test_two_devices_at_once_leave_what_one_leaves(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second run no cascade goes on with its first case before the other has one too."""
    names = [f"A-{seed}" for seed in range(8)]
    for seed, name in enumerate(names):
        write_case(tmp_path / "scans", name, seed=seed)
    statuses(tmp_path / "scans", make_cascade(bundle), tmp_path / "one")
    work, both, seen = Cascade.__call__, Barrier(2, timeout=300), dict[Cascade, list[str]]()

    def call(
        self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str, cache: LogitsCache | None
    ) -> Segmentation:
        seen.setdefault(self, []).append(case_id)
        if len(seen[self]) == 1:
            both.wait()
        return work(self, ct, pet, case_id, cache)

    monkeypatch.setattr(Cascade, "__call__", call)
    devices = [{tmp_path / "two": make_cascade(bundle)} for _ in range(2)]
    loop.predict_cases(read_cases(tmp_path / "scans"), devices)
    assert sorted(name for each in seen.values() for name in each) == names
    assert len(seen) == 2
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_devices_that_would_make_different_masks_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = make_cascade(bundle, "bfloat16")
    with pytest.raises(HnsegError, match=r"differ in precision \(float32, bfloat16\)"):
        loop.predict_cases([], [{tmp_path: make_cascade(bundle)}, {tmp_path: other}])


def test_shards_part_the_list(bundle: Bundle, scans: Path, tmp_path: Path) -> None:
    out, cases = tmp_path / "out", read_cases(scans)
    for shard in ("0/2", "1/2"):
        loop.predict_cases(take_shard(cases, shard), [{out: make_cascade(bundle)}])
    statuses(scans, make_cascade(bundle), tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    for shard in ("2/2", "1", "-1/2", "a/b"):
        with pytest.raises(HnsegError, match=f"shard={shard}: write K/N"):
            take_shard(cases, shard)


def test_the_work_on_a_case_does_not_grow_with_the_list(
    bundle: Bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in files opened; twenty-seven cases that share the scans of three."""

    def opened(count: int) -> int:
        lines = [f"{n:02},{scans}/A/A__CT.nii.gz,{scans}/A/A__PT.nii.gz" for n in range(count)]
        (tmp_path / "list.csv").write_text("\n".join(["case_id,ct,pet", *lines]))
        files, before = list[str](), Path.open

        def noted(self: Path, *arguments: object, **settings: object) -> object:
            files.append(self.name)
            return before(self, *arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", noted)
            patch.setattr(records, "monotonic", lambda: 0.0)  # no tables before the end
            statuses(tmp_path / "list.csv", make_cascade(bundle), tmp_path / f"out{count}")
        assert json.loads((tmp_path / f"out{count}" / "00.json").read_bytes())["status"] == "ok"
        return len(files)

    few, more, most = opened(3), opened(9), opened(27)
    assert most - more == 3 * (more - few)


def test_the_mask_is_of_the_case_whatever_the_list_and_the_format(bundle: Bundle, tmp_path: Path) -> None:
    """The hot spot of the fabricated PET, SUV 12, lies at x, y 25 to 37 and z 41 to 56 mm."""
    write_case(tmp_path / "scans", "A")
    for extension in ("mha", "nii"):
        sitk.WriteImage(ct_image(), str(tmp_path / f"ct.{extension}"))
        sitk.WriteImage(pet_image(), str(tmp_path / f"pet.{extension}"))
    (tmp_path / "list.csv").write_text(
        "case_id,ct,pet\nmha,ct.mha,pet.mha\nnii,ct.nii,pet.nii\nmixed,ct.nii,scans/A/A__PT.nii.gz\n"
    )
    out = tmp_path / "out"
    statuses(tmp_path / "scans", make_cascade(bundle), out)
    statuses(tmp_path / "list.csv", make_cascade(bundle), out)
    masks = [sitk.ReadImage(str(path)) for path in sorted(out.glob("*.nii.gz"))]
    arrays = [sitk.GetArrayFromImage(mask) for mask in masks]
    assert len(masks) == 4
    assert all((array == arrays[0]).all() for array in arrays)
    assert (masks[0].GetPixelID(), masks[0].GetSize()) == (sitk.sitkUInt8, ct_image().GetSize())
    index = np.argwhere(arrays[0] == 1)[:, ::-1]
    middle = masks[0].TransformContinuousIndexToPhysicalPoint(index.mean(0).tolist())
    np.testing.assert_allclose(middle, (1 + 4 * 7, 1 + 4 * 7, 1 + 5 * 9), atol=2.5)
