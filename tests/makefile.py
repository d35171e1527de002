"""The Makefile's own commands, for tests that run them on less."""

import re

from entry import ROOT


def commands(target: str) -> list[list[str]]:
    """What a target runs of hnseg, line by line: the script or `hnseg`, then its arguments."""
    text = (ROOT / "Makefile").read_text()
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert recipe is not None
    lines = recipe[1].replace("\\\n\t", " ")
    variables = dict(re.findall(r"^(\w+) \??:?= (.*)$", text, re.MULTILINE))
    while "$(" in lines:
        lines = re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], lines)
    words = [line.split() for line in lines.splitlines() if line.startswith(f"\t{variables['BIN']}/")]
    return [rest if program.endswith("/python") else ["hnseg", *rest] for program, *rest in words]
