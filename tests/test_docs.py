"""The README's and the documentation's commands, run from their own text on six patients at a tiny scale.

A fenced block is run where the line above it is `<!-- run -->`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from entry import ROOT, run, small

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^<!-- run -->\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block that is to be run."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        generated = target.endswith(("cli.md", "configuration.md", "paper.md"))
        assert target.startswith("https://") or generated or (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user whose conf/ is tiny and whose data are six phantoms."""
    folder = tmp_path_factory.mktemp("tiny")
    assert run("hnseg", "conf", "mine", cwd=folder).returncode == 0
    assert run("hnseg", "phantom", "hecktor", "--cases", "6", "--seed", "3", cwd=folder).returncode == 0
    conf = folder / "mine" / "conf"
    for path in (conf / "stage_model" / "demo").glob("*.yaml"):
        job = yaml.safe_load(path.read_text())
        job["training"] |= {"epochs": 1, "iterations": 2, "validate_every": 1}
        settings = job["model"]["settings"]
        settings |= {
            key: small(value, 9) for key, value in settings.items() if key in ("features", "init_filters")
        }
        path.write_text("# @package _global_\n" + yaml.safe_dump(job))
    changes = {"train": {"scale: full": "scale: demo", "recipe: paper": "recipe: best"}}
    changes["recipe/best"] = {"mirror: true": "mirror: false"}
    changes["scale/demo"] = {"name: hecktor_demo": ""}
    for name, words in changes.items():
        path = conf / f"{name}.yaml"
        text = path.read_text()
        for old, new in words.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
    return {
        "HNSEG_CONF": str(folder / "mine"),
        "HNSEG_DATA": str(folder / "hecktor"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_marked_blocks_run(page: Path, tiny: dict[str, str], tmp_path: Path) -> None:
    for language, text in blocks(page):
        command = (
            ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        )
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | tiny, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
def test_notebooks_run_in_order(tiny: dict[str, str], tmp_path: Path) -> None:
    for name in ("train_on_phantoms", "compare_runs", "segment"):
        script = ROOT / "docs" / "notebooks" / f"{name}.py"
        command = [sys.executable, str(script)]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | tiny, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert (tmp_path / "rates.png").exists()
    assert (tmp_path / "mask.nii.gz").exists()
