"""The challenge's container as a process: its folders, a model it may only read, its memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from fabricate import ct_image, pet_image
from members import card, make_bundle

WHOLE = {"placement": "scan", "size": [16] * 3, "spacing": [6.0] * 3}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """/input with one study, as the platform lays it out."""
    for part, image in (("ct", ct_image()), ("pet", pet_image())):
        (tmp_path / "input" / "images" / part).mkdir(parents=True)
        sitk.WriteImage(image, str(tmp_path / "input" / "images" / part / f"{part}-uuid.mha"))
    (tmp_path / "input" / "ehr.json").write_text("{}")
    return tmp_path / "input"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_bundle(tmp_path, card("fine", "resenc", grid=WHOLE)).path


def container(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The container's command, in 15 GB of address space and without a home."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (15 * 2**30, 15 * 2**30))

    command = [sys.executable, "-m", "hnseg", "challenge", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=limit,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", "MPLCONFIGDIR": "/tmp"},
    )


@pytest.mark.parametrize(
    ("edition", "path"),
    [
        ("2025", "images/tumor-lymph-node-segmentation/ct-uuid.mha"),
        ("2026", "images/head-neck-tumor-segmentation/output.mha"),
    ],
)
def test_exactly_one_mask_lies_where_the_platform_looks(
    study: Path, model: Path, tmp_path: Path, edition: str, path: str
) -> None:
    for folder in [model, *model.rglob("*")]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    out = tmp_path / "output"
    out.mkdir()
    done = container("--model", model, "--input", study, "--output", out, "--interface", edition)
    for folder in [model, *model.rglob("*")]:
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    assert done.returncode == 0, done.stderr
    assert [str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()] == [path]
    mask, ct = sitk.ReadImage(str(out / path)), ct_image()
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == ct.GetSize()
    assert (mask.GetSpacing(), mask.GetOrigin()) == (ct.GetSpacing(), ct.GetOrigin())


def test_a_study_that_is_not_there_is_one_line(study: Path, model: Path, tmp_path: Path) -> None:
    next((study / "images" / "pet").glob("*.mha")).unlink()
    done = container("--model", model, "--input", study, "--output", tmp_path / "output")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "images/pet: 0 .mha files" in line
    assert not (tmp_path / "output").exists()
