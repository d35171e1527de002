"""A case list that is run again: nothing stale, nothing twice."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from again import NAMES, NODE, cascade, statuses
from members import DECISION, HOT, WHOLE, card, make_bundle
from results import contents

from hnseg.models.bundle import Bundle


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
        lambda root: spoil(root / "out" / "lesions.csv"),
    ],
    ids=["CT touched", "other PET", "sidecar", "mask gone", "another lesion"],
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
        make_bundle(tmp_path / "coarse", card("coarse", "pointwise", HOT)), until="coarse", heads=heads
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
