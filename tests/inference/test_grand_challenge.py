"""The challenge's container: its folders, a model it may only read, its memory, no network."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from entry import hnseg, refused, run
from fabricate import ct_image, pet_image
from members import card, make_bundle
from rehearsal import USER, Rehearsal, entry_point, impossible

PATHS = {
    "2025": "images/tumor-lymph-node-segmentation/ct-uuid.mha",
    "2026": "images/head-neck-tumor-segmentation/output.mha",
}
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


def listing(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def check_mask(out: Path, path: str) -> None:
    """The folder holds one file, labels on the CT's grid."""
    assert listing(out) == {path}
    mask, ct = sitk.ReadImage(str(out / path)), ct_image()
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == ct.GetSize()
    assert (mask.GetSpacing(), mask.GetOrigin()) == (ct.GetSpacing(), ct.GetOrigin())
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) <= {0, 1, 2}


@pytest.mark.parametrize("edition", PATHS)
def test_exactly_one_mask_lies_where_the_platform_looks(
    study: Path, model: Path, tmp_path: Path, edition: str
) -> None:
    before, out = listing(model), tmp_path / "output"
    asked = ["challenge", "--model", model, "--input", study, "--output", out, "--interface", edition]
    done = hnseg(*asked)
    assert done.returncode == 0, done.stderr
    check_mask(out, PATHS[edition])
    assert listing(model) == before


def test_a_study_that_is_not_there_is_one_line(study: Path, model: Path, tmp_path: Path) -> None:
    next((study / "images" / "pet").glob("*.mha")).unlink()
    out = tmp_path / "output"
    line = refused(hnseg("challenge", "--model", model, "--input", study, "--output", out))
    assert "images/pet: 0 .mha files" in line
    assert not out.exists()


PROBE = """
import json, os, pathlib, socket, sys
def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return type(error).__name__
def unwritable(*folders):
    return [folder for folder in folders if refused(pathlib.Path(folder, "x").touch)]
shm = os.statvfs("/dev/shm")
print(json.dumps({
    "user": [os.getuid(), os.getgid(), os.getgroups()],
    "home": os.environ.get("HOME"),
    "shm": shm.f_blocks * shm.f_frsize,
    "network": refused(socket.create_connection, ("127.0.0.1", int(sys.argv[1])), 5),
    "unwritable": unwritable("/", "/opt/ml/model", "/input", "/etc", "/tmp", "/output", "/dev/shm"),
}))
"""


@pytest.fixture
def rehearsal(tmp_path: Path, study: Path) -> Rehearsal:
    """A study, and a bundle of all stages that nobody but root may write to."""
    if reason := impossible():
        pytest.skip(reason)
    stages = [card("localiser", "plainconv"), card("coarse", "plainconv"), card("fine", "resenc")]
    make_bundle(tmp_path, *stages).path.rename(tmp_path / "model")
    return Rehearsal(tmp_path)


def test_the_rehearsal_has_the_platforms_limits(rehearsal: Rehearsal) -> None:
    """Else the next test would prove nothing; the same connection is made from outside."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 5).close()
        done = rehearsal.run("python", "-c", PROBE, str(port))
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "user": [USER, USER, []],
        "home": None,
        "shm": 64 * 2**20,
        "network": "OSError",  # unreachable, where a closed port would be a ConnectionRefusedError
        "unwritable": ["/", "/opt/ml/model", "/input", "/etc"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(("edition", "converted"), [("2025", True), ("2026", False)])
def test_the_dockerfiles_command_keeps_to_the_platforms_limits(
    rehearsal: Rehearsal, edition: str, converted: bool
) -> None:
    """It runs on OpenVINO, whose networks it converts where the bundle brings none."""
    model = rehearsal.folder / "model"
    if converted:
        done = run("hnseg", "export", str(model), "--out", str(model), "--convert", cwd=rehearsal.folder)
        assert done.returncode == 0, done.stderr
    before = listing(model)
    ended = rehearsal.run(*entry_point(), "--interface", edition)
    assert ended.code == 0, ended.stderr
    assert ended.stderr == "segmenting the study in /input\n"
    assert ended.peak < 15 * 2**30
    assert listing(model) == before
    made = listing(rehearsal.folder / "tmp" / "cache")
    assert len([path for path in made if path.endswith("network.xml")]) == (0 if converted else 3)
    check_mask(rehearsal.folder / "output", PATHS[edition])
