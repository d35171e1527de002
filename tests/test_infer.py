"""infer.py as typed: mistakes told at once, bad cases reported while the others finish, the exit status."""

from pathlib import Path

import pytest
import SimpleITK as sitk
from entry import compose_job, load, refused, run
from fabricate import ct_image, write_case
from members import card, make_bundle

from hnseg.errors import HnsegError

WHOLE = {"placement": "scan", "size": [16] * 3, "spacing": [6.0] * 3}
CPU = ["trainer.device=cpu", "trainer.precision=float32"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    one = card("fine", "segresnet", grid=WHOLE, trained_on=["A-1"])
    other = card("fine", "plainconv", grid=WHOLE, trained_on=["A-2"])
    return make_bundle(tmp_path, one, other).path


def infer(*arguments: str) -> None:
    load("infer").main(compose_job("infer", *arguments, *CPU))


@pytest.mark.parametrize("key", ["cases", "bundle", "out"])
def test_a_missing_argument_is_named(tmp_path: Path, key: str) -> None:
    write_case(tmp_path / "scans", "A-1")
    given = {"cases": tmp_path / "scans", "bundle": tmp_path, "out": tmp_path / "out"}
    with pytest.raises(HnsegError, match=rf"^{key} is not set.*cases=PATH bundle=DIR out=DIR"):
        infer(*(f"{name}={value}" for name, value in given.items() if name != key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("until=middle", "until=middle is no stage"),
        ("until=head", "until=head.*no head member, only fine"),
        ("cases=nowhere", "nowhere: no such folder or CSV"),
        ("bundle=nowhere", r"bundle=nowhere: no bundle\.yaml"),
        ("trainer.device=gpu", r"trainer\.device=gpu is unknown"),
        ("trainer.precision=fp16", r"trainer\.precision=fp16 is unknown"),
    ],
)
def test_impossible_settings_are_told(bundle: Path, tmp_path: Path, change: str, message: str) -> None:
    write_case(tmp_path / "scans", "A-1")
    given = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'out'}"]
    with pytest.raises(HnsegError, match=message):
        load("infer").main(compose_job("infer", *given, *CPU, change))
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_and_exit_2(tmp_path: Path) -> None:
    line = refused(run("infer.py", "cases=nowhere", "bundle=b", "out=o", cwd=tmp_path))
    assert line.startswith("infer.py: error: nowhere")
    assert not any(tmp_path.iterdir())


def test_a_bad_case_is_reported_and_the_others_finish(bundle: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "scans", "A-1")
    write_case(tmp_path / "scans", "A-2", pet=None)
    places = ["cases=scans", f"bundle={bundle}", "out=out"]
    done = run("infer.py", *places, *CPU, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.strip() == "1 of 2 cases segmented: out"
    assert "not segmented: A-2" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"A-1.nii.gz", "cases.csv"}
    assert sitk.ReadImage(str(tmp_path / "out" / "A-1.nii.gz")).GetSize() == ct_image().GetSize()
    assert {path.name for path in tmp_path.iterdir()} == {
        "runs",
        "bundle",
        "scans",
        "out",
    }  # Hydra left nothing


