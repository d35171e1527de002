"""Every way to spoil a scan, in one list through infer.py: one clear line each, and the others finish."""

import csv
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from entry import compose_job, load
from fabricate import ct_image, pet_image
from members import HOT, WHOLE, card, make_bundle

from hnseg.imaging.audit import audit
from hnseg.imaging.case import read_cases

SOUND = ["A first", "患者-Ünï-🙂", "[red]B[bold]", "$(touch oops)", "-rf", "Z-last"]
HOSTILE = ["../x", "../../x", "/etc/x", "..", ".hidden", "C:\\x", "", "x" * 300, "患" * 99, "two\nlines"]
# Cells of the list, and what the line on the case must say.
Spoiled = tuple[str, str, str]


def save(image: sitk.Image, path: Path) -> str:
    sitk.WriteImage(image, str(path))
    return path.name


def array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def like(image: sitk.Image, values: np.ndarray, dtype: type = np.float32) -> sitk.Image:
    """`values` (z, y, x) on the grid of `image`."""
    changed = sitk.GetImageFromArray(values.astype(dtype))
    changed.CopyInformation(image)
    return changed


def edited(path: Path, edit: Callable[[bytes], bytes]) -> str:
    path.write_bytes(edit(path.read_bytes()))
    return path.name


def spoiled_files(root: Path) -> dict[str, Spoiled]:
    """Files that are damaged, misnamed, or no volume."""
    save(ct_image(), root / "ct.nii.gz")
    save(pet_image(), root / "pet.nii.gz")
    whole, plain = (root / "ct.nii.gz").read_bytes(), root / "plain.nii"
    save(ct_image(), plain)

    def written(name: str, content: bytes) -> str:
        (root / name).write_bytes(content)
        return name

    def header(name: str, offset: int, field: bytes) -> str:
        content = plain.read_bytes()
        return written(name, content[:offset] + field + content[offset + len(field) :])

    holes = array(ct_image())
    holes[3, 4, 5] = np.nan
    hot = array(pet_image())
    hot[3, 4, 5] = np.inf
    flat = sitk.GetImageFromArray(array(ct_image())[9])
    film = sitk.GetImageFromArray(np.stack([array(pet_image())] * 2), isVector=False)
    colours = sitk.GetImageFromArray(np.zeros((9, 9, 9, 3), np.uint8), isVector=True)
    (root / "folder.nii.gz").mkdir()
    (root / "loop.nii.gz").symlink_to("loop.nii.gz")
    ct, pet = "ct.nii.gz", "pet.nii.gz"
    return {
        "truncated": (written("cut.nii.gz", whole[: len(whole) // 2]), pet, "cut short"),
        "truncated tail": (written("tail.nii.gz", whole[:-6]), pet, "cut short"),
        "flipped bits": (written("bits.nii.gz", whole[:9000] + b"\0\xff" + whole[9002:]), pet, "damaged"),
        "NaN": (save(like(ct_image(), holes), root / "nan.nii.gz"), pet, "1 NaN or infinite"),
        "Inf": (ct, save(like(pet_image(), hot), root / "inf.mha"), "1 NaN or infinite"),
        "wrong extension": (written("ct.dcm", whole), pet, "'.dcm' is not an image extension"),
        "text": (ct, written("pet_text.nii.gz", b"not an image" * 99), "header is not NIfTI"),
        "NIfTI as MHA": (written("ct_as.mha", whole), pet, "not MetaImage"),
        "empty": (ct, written("none.nii.gz", b""), "its header is not NIfTI"),
        "missing": (ct, "nowhere.nii.gz", "No such file"),
        "folder": (ct, "folder.nii.gz", "Is a directory"),
        "long path": ("x" * 300 + ".nii.gz", pet, "File name too long"),
        "odd path": (ct, "pet\n.nii.gz", "control characters"),
        "NUL": ("ct\0.nii.gz", pet, "control characters"),
        "loop": ("loop.nii.gz", pet, "loop.nii.gz: "),
        "2-D": (save(flat, root / "flat.mha"), pet, "is not one 3-D volume"),
        "4-D": (ct, save(film, root / "film.nii.gz"), "is not one 3-D volume"),
        "RGB": (save(colours, root / "rgb.nii.gz"), pet, "is not one 3-D volume"),
        "zero spacing": (header("zero.nii", 80, struct.pack("<f", 0)), pet, "spacing (0, 2, 3) mm"),
        "huge header": (
            header("huge.nii", 42, struct.pack("<3h", *[32767] * 3)),
            pet,
            "larger than any scan",
        ),
        "longer header": (header("longer.nii", 42, struct.pack("<h", 4000)), pet, "cut short"),
    }


def spoiled_values(root: Path) -> dict[str, Spoiled]:
    """Volumes that are read well and hold the wrong thing."""
    far, ct, pet = pet_image(), "ct.nii.gz", "pet.nii.gz"
    far.SetOrigin((1500.0, -900.0, 300.0))
    suv, hu = array(pet_image()), array(ct_image())
    noise = np.random.default_rng(0).normal(-1000, 10, hu.shape)

    def tracer(name: str, values: np.ndarray, dtype: type = np.float32) -> str:
        return save(like(pet_image(), values, dtype), root / f"{name}.nii.gz")

    def scan(name: str, values: np.ndarray, dtype: type = np.float32) -> str:
        return save(like(ct_image(), values, dtype), root / f"{name}.nii.gz")

    unit = "Bq/ml or counts, not SUV"
    return {
        "swapped": (pet, ct, "look swapped"),
        "swapped, air at 0": (pet, scan("stored", hu + 1024, np.uint16), "not HU"),
        "CT twice": (ct, ct, "name a PET, not a CT"),
        "PET twice": (pet, pet, "not HU"),
        "another patient": (ct, save(far, root / "far.nii.gz"), "do not overlap in space"),
        "becquerel": (ct, tracer("becquerel", suv / 2.9e-4), unit),
        "counts": (ct, tracer("counts", suv / 12 * 32767, np.int16), unit),
        "SUV x 1000": (ct, tracer("integers", suv * 1000, np.int16), unit),
        "SUV scaled twice": (ct, tracer("twice", suv * 2.9e-4), "less than any SUV"),
        "all air": (scan("air", noise), pet, "not HU"),
        "no tracer": (ct, tracer("nothing", 0 * suv), "PET is 0 everywhere"),
        "constant CT": (scan("flat_ct", 0 * hu - 1000), pet, "CT is -1000 everywhere"),
        "constant PET": (ct, tracer("flat_pet", 0 * suv + 3), "PET is 3 everywhere"),
    }


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A case list of sound and spoiled cases; what the line on each spoiled one must say."""
    root = tmp_path_factory.mktemp("sandbox") / "in" / "scans"
    root.mkdir(parents=True)
    bad = spoiled_files(root) | spoiled_values(root)
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["case_id", "ct", "pet", "pet_factor"])
        table.writerows([name, ct, pet, ""] for name, (ct, pet, _) in bad.items())
        table.writerows([name, "ct.nii.gz", "pet.nii.gz", ""] for name in SOUND + HOSTILE)
        table.writerow(["M-factor", "ct.nii.gz", "becquerel.nii.gz", "2.9e-4"])
        table.writerow(["no factor", "ct.nii.gz", "becquerel.nii.gz", "a third"])
    return root / "list.csv", {name: words for name, (_, _, words) in bad.items()} | {
        "no factor": "pet_factor"
    }


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_each_ends_in_one_line_the_others_finish_and_nothing_is_written_elsewhere(
    spoiled: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases, telling = spoiled
    bundle = make_bundle(tmp_path, card("fine", "pointwise", HOT, grid=WHOLE)).path
    out, here = tmp_path / "a" / "b" / "out", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = snapshot(cases.parent.parent), snapshot(tmp_path)
    places = [f"cases={cases}", f"bundle={bundle}", f"out={out}"]
    with pytest.raises(SystemExit) as stopped:
        load("infer").main(compose_job("infer", *places, "trainer.device=cpu", "trainer.precision=float32"))
    assert stopped.value.code == 1

    said = capsys.readouterr()
    assert f"{len(SOUND) + 1} of {len(SOUND) + 1 + len(telling) + len(HOSTILE)} cases segmented" in said.out
    assert "Traceback" not in said.err
    assert "a defect" not in said.err
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    sound = {*SOUND, "M-factor"}
    assert {name for name, row in rows.items() if row["status"] == "ok"} == sound
    for name, words in telling.items():
        assert words in rows[name]["message"], name
    refused = [row["message"] for name, row in rows.items() if name not in {*sound, *telling}]
    assert len(refused) == len(HOSTILE)
    assert all("is not a plain file name; rename the case" in message for message in refused)
    # one line each: in the table, and in the terminal
    assert all(len(row["message"].splitlines()) <= 1 for row in rows.values())
    lines = [line for line in said.err.splitlines() if re.search(": error: ", line)]
    assert sorted(line.split(": error: ")[0] for line in lines) == sorted(rows.keys() - sound)

    masks = {path.name.removesuffix(".nii.gz"): path for path in out.glob("*.nii.gz")}
    assert masks.keys() == sound
    found = [array(sitk.ReadImage(str(path))) for path in masks.values()]
    assert found[0].any()
    assert all((mask == found[0]).all() for mask in found)
    assert not [path for path in out.rglob("*") if path.name.startswith(".") and path.is_file()]
    after = snapshot(tmp_path)
    made = {name for name in after.keys() - before[1].keys() if not name.startswith("bundle")}
    assert all(name.startswith("a/b/out/") for name in made)
    assert snapshot(cases.parent.parent) == before[0]


def test_the_audit_finds_the_same_cases_unusable(spoiled: tuple[Path, dict[str, str]]) -> None:
    cases, telling = spoiled
    audits = {one.case.case_id: one for one in audit(read_cases(cases, strict=False), workers=1)}
    assert {name for name, one in audits.items() if one.usable} == {*SOUND, "M-factor"}
    for name, words in telling.items():
        assert any(words in finding.text for finding in audits[name].findings), name
