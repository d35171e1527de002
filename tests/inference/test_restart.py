"""A case list that is run again: nothing stale, nothing twice, and nothing of somebody else's replaced."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from again import NAMES, NODE, outcomes, statuses
from members import HOT, WHOLE, card, make_bundle, make_cascade
from results import contents, table

from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.ensemble import LogitsCache
from hnseg.models.bundle import Bundle


def test_a_second_run_changes_nothing(
    scans: Path, bundle: Bundle, tmp_path: Path, networks: list[str]
) -> None:
    out = tmp_path / "out"
    assert statuses(scans, make_cascade(bundle), out) == dict.fromkeys(NAMES, "ok")
    before = {path: path.read_bytes() for path in out.iterdir()}
    networks.clear()
    assert statuses(scans, make_cascade(bundle), out) == dict.fromkeys(NAMES, "skipped")
    assert not networks
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert statuses(scans, make_cascade(bundle), out, overwrite=True) == dict.fromkeys(NAMES, "ok")
    assert networks == list(NAMES)


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000))


def other_pet(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.with_name("B").parent.parent.joinpath("B", "B__PT.nii.gz").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: touch(root / "scans" / "A" / "A__CT.nii.gz"),
        lambda root: other_pet(root / "scans" / "A" / "A__PT.nii.gz"),
        lambda root: (root / "scans" / "A" / "A__PT.json").write_text('{"Modality": "PT"}'),
        lambda root: (root / "out" / "A.nii.gz").unlink(),
        lambda root: (root / "out" / "A.json").unlink() or (root / "out" / "A.nii.gz").unlink(),
    ],
    ids=["CT touched", "other PET", "sidecar", "mask gone", "record gone"],
)
def test_one_changed_file_costs_its_case_alone(
    scans: Path, bundle: Bundle, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    statuses(scans, make_cascade(bundle), tmp_path / "out")
    change(tmp_path)
    again = statuses(scans, make_cascade(bundle), tmp_path / "out")
    assert again == {"A": "ok", "B": "skipped", "C": "skipped"}
    statuses(scans, make_cascade(bundle), tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_other_networks_rules_or_settings_segment_all_cases_again(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "node", card("fine", "pointwise", NODE, grid=WHOLE))
    ruled = replace(bundle, decision=replace(bundle.decision, min_component_ml=0.5))
    changed = [
        make_cascade(other),
        make_cascade(ruled),
        make_cascade(bundle, mirror=True),
        make_cascade(bundle, out_of_fold=True),
    ]
    for stages in changed:
        assert set(statuses(scans, make_cascade(bundle), tmp_path / "out").values()) == {"ok"}
        assert set(statuses(scans, stages, tmp_path / "out").values()) == {"ok"}


def test_another_head_mask_is_another_case(scans: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    for name in NAMES:
        label = sitk.ReadImage(str(scans / name / f"{name}.nii.gz"))
        sitk.WriteImage(label, str(heads / f"{name}.nii.gz"))
    stages = make_cascade(
        make_bundle(tmp_path / "coarse", card("coarse", "pointwise", HOT)),
        last_stage="coarse",
        head_masks=heads,
    )
    statuses(scans, stages, tmp_path / "out")
    touch(heads / "B.nii.gz")
    assert statuses(scans, stages, tmp_path / "out") == {"A": "skipped", "B": "ok", "C": "skipped"}


def test_a_case_that_failed_is_tried_again(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    pet = scans / "B" / "B__PT.nii.gz"
    hidden = pet.rename(tmp_path / "pet.nii.gz")
    assert statuses(scans, make_cascade(bundle), tmp_path / "out") == {"A": "ok", "B": "error", "C": "ok"}
    hidden.rename(pet)
    assert statuses(scans, make_cascade(bundle), tmp_path / "out") == {
        "A": "skipped",
        "B": "ok",
        "C": "skipped",
    }


@pytest.mark.parametrize("drawn", ["A.nii.gz", "A.mha", "A.nii"])
def test_a_mask_that_somebody_changed_stays_until_replacing_is_asked_for(
    scans: Path, bundle: Bundle, tmp_path: Path, drawn: str
) -> None:
    """It is an error only where another mask is asked for."""
    out = tmp_path / "out"
    statuses(scans, make_cascade(bundle), out)
    (out / drawn).write_bytes(b"corrected by hand")
    assert statuses(scans, make_cascade(bundle), out)["A"] == "skipped"
    found = outcomes(scans, make_cascade(bundle, mirror=True), out)
    assert {name: one.status for name, one in found.items()} == {"A": "error", "B": "ok", "C": "ok"}
    assert f"{drawn} is not as hnseg infer wrote it; move it away" in found["A"].message
    assert (out / drawn).read_bytes() == b"corrected by hand"
    assert table(out)["A"]["status"] == "ok"  # of the mask before
    assert statuses(scans, make_cascade(bundle), out, overwrite=True)["A"] == "ok"
    assert sitk.ReadImage(str(out / "A.nii.gz")).GetPixelID() == sitk.sitkUInt8


def test_a_mask_that_hnseg_did_not_make_stays(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Neither does a case that fails now take a drawn mask with it, though all are asked for again."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "B.nii.gz").write_bytes(b"drawn by hand")
    assert statuses(scans, make_cascade(bundle), out) == {"A": "ok", "B": "error", "C": "ok"}
    (scans / "B" / "B__PT.nii.gz").write_bytes(b"damaged")
    assert statuses(scans, make_cascade(bundle), out, overwrite=True)["B"] == "error"
    assert (out / "B.nii.gz").read_bytes() == b"drawn by hand"


def test_a_mask_that_is_put_there_meanwhile_stays(
    scans: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment, out = Cascade.__call__, tmp_path / "out"

    def call(
        self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str, cache: LogitsCache | None
    ) -> Segmentation:
        if case_id == "B":
            (out / "B.nii.gz").write_bytes(b"drawn by hand")
        return segment(self, ct, pet, case_id, cache)

    monkeypatch.setattr(Cascade, "__call__", call)
    assert statuses(scans, make_cascade(bundle), out) == {"A": "ok", "B": "error", "C": "ok"}
    assert (out / "B.nii.gz").read_bytes() == b"drawn by hand"
    assert "B.nii.gz is not as hnseg infer wrote it" in table(out)["B"]["message"]
    assert not list(out.glob(".*"))


def test_a_case_that_fails_now_does_not_keep_an_earlier_mask(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    statuses(scans, make_cascade(bundle), tmp_path / "out")
    (scans / "A" / "A__PT.nii.gz").unlink()
    assert statuses(scans, make_cascade(bundle), tmp_path / "out")["A"] == "error"
    assert table(tmp_path / "out")["A"]["status"] == "error"
    assert not (tmp_path / "out" / "A.nii.gz").exists()


def test_a_factor_for_the_pet_makes_another_case(scans: Path, bundle: Bundle, tmp_path: Path) -> None:
    lines = [
        "case_id,ct,pet,pet_factor",
        *(f"{n},scans/{n}/{n}__CT.nii.gz,scans/{n}/{n}__PT.nii.gz," for n in "AB"),
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    statuses(tmp_path / "list.csv", make_cascade(bundle), tmp_path / "out")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "1.5")
    again = statuses(tmp_path / "list.csv", make_cascade(bundle), tmp_path / "out")
    assert again == {"A": "skipped", "B": "ok"}


def test_masks_of_one_format_take_the_place_of_the_others(
    scans: Path, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    statuses(scans, make_cascade(bundle), out)
    first = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "A.nii.gz")))
    assert set(statuses(scans, make_cascade(bundle), out, extension=".mha").values()) == {"ok"}
    assert {path.name for path in out.glob("?.*") if path.suffix != ".json"} == {f"{n}.mha" for n in NAMES}
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "A.mha"))), first)
    assert first.any()
