"""What the Dockerfiles copy builds a wheel that needs no repository, installed into an empty environment."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from entry import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["Dockerfile", "docker/Dockerfile"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what a Dockerfile copies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for names in re.findall(r"^COPY (.*) \S+$", (ROOT / request.param).read_text(), re.MULTILINE):
        for path in map(ROOT.joinpath, names.split()):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, source / path.name)
    uv("build", "--wheel", "--out-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def uv(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *map(str, arguments)], check=True)


def test_the_wheel_brings_commands_and_configuration(wheel: Path, tmp_path: Path) -> None:
    """In an empty environment, far from the repository; its packages are links into the cache of uv."""
    uv("venv", tmp_path / "empty")
    python = tmp_path / "empty" / "bin" / "python"
    uv("pip", "install", "--python", python, "-c", ROOT / "constraints.txt", wheel)

    def hnseg(*arguments: str) -> str:
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [tmp_path / "empty" / "bin" / "hnseg", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert hnseg("plan").endswith(" 0 DIFFERENT\n")
    assert "name: localiser\n" in hnseg("train", "stage=localiser", "model=plainconv", "--cfg", "job")
    assert "hnseg infer cases=PATH" in hnseg("infer", "--help")
    hnseg("conf", "mine")
    assert (tmp_path / "mine" / "sweeps" / "ablation.yaml").exists()
    hnseg("phantom", "scans", "--cases", "1")
    assert (tmp_path / "scans" / "clinical.csv").exists()
