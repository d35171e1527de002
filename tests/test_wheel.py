"""What the Dockerfile copies builds a wheel that needs no repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from entry import ROOT

pytestmark = pytest.mark.slow


def test_the_wheel_brings_the_configuration(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    for names in re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for path in map(ROOT.joinpath, names.split()):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            source.mkdir(exist_ok=True)
            copy(path, source / path.name)
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path, source]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    ZipFile(wheel).extractall(installed)
    done = subprocess.run(
        [sys.executable, "-m", "hnseg", "plan"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" 0 DIFFERENT\n")
