"""CONTRIBUTING.md speaks of files that are there."""

import re

import pytest
from entry import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:hnseg|conf|tests)/[a-z0-9_/.]*)`", TEXT))))
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_package_has_its_line() -> None:
    packages = {folder.name for folder in (ROOT / "hnseg").iterdir() if (folder / "__init__.py").exists()}
    assert set(re.findall(r"^    hnseg/(\w+)/ ", TEXT, re.MULTILINE)) == packages
