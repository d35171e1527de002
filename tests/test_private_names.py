"""The code uses no private part of a library: each may change with any release of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [*sorted((ROOT / "hnseg").rglob("*.py")), ROOT / "train.py", ROOT / "infer.py"]
NAMEDTUPLE = {"_asdict", "_fields", "_make", "_replace"}  # documented; the underscore avoids clashes


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_names(text: str) -> Iterator[str]:
    """Private names that are imported, or taken from objects whose class the text does not define.

    `self._x`, `cls._x`, and `other._x` where a class of the text has `_x`, unless `other` was imported.
    """
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    imported: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            paths = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (part for path in paths for part in path.split(".") if is_private(part))
    own = set()
    for definition in nodes:
        if isinstance(definition, ast.ClassDef):
            for node in ast.walk(definition):
                if isinstance(node, ast.FunctionDef):
                    own.add(node.name)
                elif (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "self"
                ):
                    own.add(node.attr)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    own.add(node.target.id)
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in NAMEDTUPLE:
            direct = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not direct and (node.attr not in own or _root(node) in imported):
                yield node.attr
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (t.attr for t in targets if isinstance(t, ast.Attribute) and t.attr == "__class__")


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None


def test_no_private_part_of_a_library_is_used():
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in FILES
        for name in private_names(path.read_text(encoding="utf-8"))
    }
    assert not found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("from torch._subclasses import FakeTensorMode", ["_subclasses"]),
        ("import numpy._core.multiarray as m", ["_core"]),
        ("from numpy.core.multiarray import _reconstruct", ["_reconstruct"]),
        ("def f(trainer):\n    trainer._logger_connector.on_epoch_end()", ["_logger_connector"]),
        ("import torch\ntorch.x()._cdata", ["_cdata"]),
        ("class A:\n    def f(self, module):\n        self.x.module._y = 1", ["_y"]),
        ("def f(module):\n    module.__class__ = int", ["__class__"]),
        ("class A:\n    def f(self, other):\n        return self._x == other._x", []),
        ("class A:\n    @classmethod\n    def f(cls):\n        return cls()._x\n    def _x(self): ...", []),
    ],
)
def test_what_counts_as_private(text, names):
    assert list(private_names(text)) == names
