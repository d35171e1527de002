"""Members that have not seen the case: what each network paints shows which ones were asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from entry import write_cohort
from fabricate import write_case
from members import card, make_bundle, make_cascade
from results import table

from hnseg.errors import HnsegError
from hnseg.imaging.case import read_cases
from hnseg.imaging.images import digest_voxels, read_image
from hnseg.inference.predict_cases import predict_cases
from hnseg.models.bundle import Bundle

# Fold 0 holds A-0 out, fold 1 B-1 and fold 2 A-2; B-3 was in the training of each.
CASES = ["A-0", "B-1", "A-2", "B-3"]
HELD_OUT = {0: "A-0", 1: "B-1", 2: "A-2"}
# What the network of each fold paints everywhere: GTVp, GTVn, nothing.
PAINTS = {0: 1, 1: 2, 2: 0}


def painter(
    stage: str, fold: int, label: int, trained_on: list[str] | None, **changes: Any
) -> dict[str, Any]:
    """A member that says one label everywhere."""
    channels, classes = (1, 2) if stage == "localiser" else (2, 3)
    biases = [9.0 if n == label else 0.0 for n in range(classes)]
    settings = {"weights": [[0.0] * channels] * classes, "biases": biases}
    name = f"{stage}_fold_{fold}"
    return card(stage, "pointwise", settings, name=name, fold=fold, trained_on=trained_on, **changes)


def folds(stage: str = "coarse", **changes: Any) -> list[dict[str, Any]]:
    """One painter a fold, each trained on every case but its own."""
    return [
        painter(stage, fold, PAINTS[fold], [case for case in CASES if case != held_out], **changes)
        for fold, held_out in HELD_OUT.items()
    ]


def segment(bundle: Bundle, cohort: Path, out: Path, **settings: Any) -> dict[str, dict[str, str]]:
    cascade = make_cascade(bundle, head_masks=cohort / "heads", **settings)
    predict_cases(read_cases(cohort), [{out: cascade}])
    return table(out)


def painted(out: Path, case_id: str) -> int:
    """The one label of the mask, 0 where it has none."""
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{case_id}.nii.gz")))
    labels = set(np.unique(mask)) - {0}
    assert len(labels) <= 1
    return int(max(labels, default=0))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """CASES, and C-4 that no member knows, with heads."""
    root = write_cohort(tmp_path / "cohort")
    write_case(root, "C-4")
    (root / "heads" / "C-4.nii.gz").write_bytes((root / "heads" / "A-0.nii.gz").read_bytes())
    return root


def test_no_case_meets_a_network_that_was_trained_on_it(cohort: Path, tmp_path: Path) -> None:
    rows = segment(
        make_bundle(tmp_path, *folds()), cohort, tmp_path / "out", last_stage="coarse", out_of_fold=True
    )
    for fold, case_id in HELD_OUT.items():
        assert painted(tmp_path / "out", case_id) == PAINTS[fold]
        assert (rows[case_id]["status"], rows[case_id]["out_of_fold"]) == ("ok", "yes")
    assert rows["C-4"]["out_of_fold"] == "yes"
    assert {name for name, row in rows.items() if row["status"] == "error"} == {"B-3"}
    assert "every coarse member was trained on it" in rows["B-3"]["message"]
    assert not (tmp_path / "out" / "B-3.nii.gz").exists()


def test_without_out_of_fold_all_members_are_asked_and_the_table_tells(cohort: Path, tmp_path: Path) -> None:
    rows = segment(make_bundle(tmp_path, *folds()), cohort, tmp_path / "out", last_stage="coarse")
    assert {name: row["out_of_fold"] for name, row in rows.items()} == dict.fromkeys(CASES, "no") | {
        "C-4": "yes"
    }
    assert {row["status"] for row in rows.values()} == {"ok"}


def test_each_stage_has_members_of_its_own(cohort: Path, tmp_path: Path) -> None:
    """The localiser knows A-2, and only places a box; A-0 has a drawn mask, and B-1 none."""
    (cohort / "heads" / "B-1.nii.gz").unlink()
    (cohort / "heads" / "A-2.nii.gz").unlink()
    head = painter("localiser", 0, 1, ["A-0", "A-2"])
    bundle = make_bundle(tmp_path, head, *folds())
    rows = segment(bundle, cohort, tmp_path / "out", last_stage="coarse", out_of_fold=True)
    assert (painted(tmp_path / "out", "A-0"), rows["A-0"]["out_of_fold"]) == (1, "yes")
    assert (painted(tmp_path / "out", "B-1"), rows["B-1"]["out_of_fold"]) == (2, "yes")
    assert (rows["A-2"]["status"], rows["A-2"]["out_of_fold"]) == ("ok", "yes")
    assert "the localiser was trained on this case" in rows["A-2"]["message"]
    heads = segment(bundle, cohort, tmp_path / "heads", last_stage="localiser", out_of_fold=True)
    assert "every localiser member was trained on it" in heads["A-2"]["message"]
    # Without out_of_fold, the folds that know A-0 are in the table.
    rows = segment(
        make_bundle(tmp_path / "b", head, folds()[2]), cohort, tmp_path / "b" / "out", last_stage="coarse"
    )
    assert {name: rows[name]["out_of_fold"] for name in ("A-0", "A-2", "C-4")} == {
        "A-0": "no",
        "A-2": "yes",
        "C-4": "yes",
    }


def test_a_patient_under_another_name_is_known_by_the_ct(cohort: Path, tmp_path: Path) -> None:
    """B-1's CT under the name of C-4, in another format and type, was trained on by folds 0 and 2."""
    known = {case.case_id: digest_voxels(read_image(case.ct)) for case in read_cases(cohort)}
    members = [one | {"trained_on_ct": [known[case] for case in one["trained_on"]]} for one in folds()]
    ct = sitk.Cast(read_image(cohort / "B-1" / "B-1__CT.nii.gz"), sitk.sitkFloat32)
    (cohort / "C-4" / "C-4__CT.nii.gz").unlink()
    sitk.WriteImage(ct, str(cohort / "C-4" / "C-4__CT.mha"))
    rows = segment(
        make_bundle(tmp_path, *members), cohort, tmp_path / "out", last_stage="coarse", out_of_fold=True
    )
    assert (painted(tmp_path / "out", "C-4"), rows["C-4"]["out_of_fold"]) == (PAINTS[1], "yes")


def test_a_list_of_which_nothing_can_be_segmented_out_of_fold_is_refused_once(
    cohort: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, painter("coarse", 0, 1, CASES))
    cascade = make_cascade(bundle, head_masks=cohort / "heads", last_stage="coarse", out_of_fold=True)
    with pytest.raises(HnsegError, match=r"each coarse member .* 4 cases; .*stage=coarse .* fold=0-4"):
        cascade.require_out_of_fold(CASES)
    cascade.require_out_of_fold([*CASES, "C-4"])


def test_a_member_of_unknown_training_counts_as_having_seen_every_case(cohort: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, painter("coarse", 0, 1, None), *folds()[1:])
    rows = segment(bundle, cohort, tmp_path / "out", last_stage="coarse", out_of_fold=True)
    assert "every coarse member" in rows["A-0"]["message"]
    assert painted(tmp_path / "out", "B-1") == 2


def test_the_whole_cascade_is_out_of_fold(cohort: Path, tmp_path: Path) -> None:
    """Coarse members paint GTVp, fine members what their fold paints."""
    coarse = [
        painter("coarse", fold, 1, [case for case in CASES if case != held_out])
        for fold, held_out in HELD_OUT.items()
    ]
    bundle = make_bundle(tmp_path, *coarse, *folds("fine"))
    rows = segment(bundle, cohort, tmp_path / "out", out_of_fold=True)
    for fold, case_id in HELD_OUT.items():
        assert painted(tmp_path / "out", case_id) == PAINTS[fold]
        assert rows[case_id]["out_of_fold"] == "yes"
        # All of the coarse cube of 144 mm, but for the fine cube of 72 mm in its middle.
        assert float(rows[case_id]["lesion_ml_outside_roi"]) == pytest.approx(
            (144**3 - 72**3) / 1000, abs=0.01
        )
    assert "every coarse member" in rows["B-3"]["message"]
