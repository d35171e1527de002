"""Folders as `hnseg ablation` and infer.py leave them, of two small patients."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import label_image, volume, write_case

from hnseg.evaluation.report.page import write_report
from hnseg.inference.lesions import Lesion
from hnseg.inference.records import Record, record_file

EVIL = "<script>alert(1)<script>"  # a name of a folder holds no slash
SCRIPT = "<script>alert(1)</script>"


def write_arm(folder: Path, masks: dict[str, sitk.Image]) -> None:
    """Masks and their records; of the last case, members disagree about a lesion."""
    folder.mkdir(parents=True)
    for name, mask in masks.items():
        sitk.WriteImage(mask, str(folder / f"{name}.nii.gz"))
        record = Record(name, "ok", "", "", "fine")
        if name == max(masks):
            agreements = [0.9, 0.5, None]
            record.lesions.extend(Lesion(1, "GTVn", 1, None, (0, 0, 0), 0.9, a, 9) for a in agreements)
            record.review_reasons.append(f"members disagree {SCRIPT}")
        record_file(folder, name).write_bytes(record.to_json())


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def cohort(folder) -> Path:
    """Cases A-1, B-2 and one whose name is a script, each with one GTVp and two GTVn."""
    for seed, name in enumerate(("A-1", "B-2", EVIL)):
        write_case(folder / "cohort", name, seed=seed)
    return folder / "cohort"


@pytest.fixture(scope="session")
def masks() -> dict[str, sitk.Image]:
    """A-1 without one of its nodes, B-2 right but for a false node, and the third right."""
    truth = sitk.GetArrayFromImage(label_image())
    missed, false = truth.copy(), truth.copy()
    missed[20:22, 10:12, 20:22] = 0
    false[24:26, 20:24, 20:24] = 2
    made = {"A-1": missed, "B-2": false, EVIL: truth}
    return {name: volume(mask, (2, 2, 3)) for name, mask in made.items()}


@pytest.fixture(scope="session")
def predictions(folder, masks) -> Path:
    """What infer.py leaves, with a probability map of one case."""
    write_arm(folder / "out", masks)
    probability = (sitk.GetArrayFromImage(label_image()) == 1) * np.float32(0.8)
    maps = folder / "out" / "maps" / "A-1"
    maps.mkdir(parents=True)
    sitk.WriteImage(volume(probability, (2, 2, 3)), str(maps / "probability_GTVp.nii.gz"))
    return folder / "out"


@pytest.fixture(scope="session")
def ablation(folder, cohort, predictions, masks) -> Path:
    """Two arms: the masks, and the truth itself."""
    out = folder / "ablation"
    shutil.copytree(predictions, out / "full")
    write_arm(out / "resenc", {name: label_image() for name in masks})
    (out / "ablation.json").write_text(
        json.dumps({"arms": ["full", "resenc"], "data": str(cohort), "rows": []})
    )
    return out


@pytest.fixture(scope="session")
def report(ablation) -> Path:
    """The page of the ablation."""
    write_report(ablation)
    return ablation / "report.html"
