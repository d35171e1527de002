"""The libraries that the page carries: NiiVue, which shows volumes, and DataTables, which sorts tables."""

import base64
import gzip
import re
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from hnseg.errors import HnsegError

REMEDY = "install the extra: pip install -e '.[report]'"
# ipyniivue's bundle is a module that exports only its widget. The viewer's class follows this message, under
# the name that the minifier gave it.
_CLASS = re.compile(r"Creating new Niivue instance.{0,200}?=\s*new ([\w$]+)\(", re.DOTALL)


def niivue() -> str:
    """ipyniivue's bundle as a module that exports `Niivue`, packed.

    Raises:
        HnsegError: ipyniivue is not installed, or the class is not found in its bundle.
    """
    bundle = _package("ipyniivue") / "static" / "widget.js"
    source = bundle.read_text(encoding="utf-8")
    name = _CLASS.search(source)
    if name is None:
        raise HnsegError(f"{bundle}: holds no Niivue class that hnseg knows; {REMEDY} -c constraints.txt")
    return _pack(f"{source}\nexport {{ {name[1]} as Niivue }};\n")


def datatables() -> str:
    """itables' bundle, a module whose default is DataTables' class, packed.

    Raises:
        HnsegError: itables is not installed.
    """
    return _pack((_package("itables") / "html" / "dt_bundle.js").read_text(encoding="utf-8"))


def licences() -> dict[str, str]:
    """The licences that go with the bundles, which every copy must carry."""
    packages = {"NiiVue": "ipyniivue", "DataTables": "itables"}
    return {name: distribution(own).read_text("licenses/LICENSE") or "" for name, own in packages.items()}


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise HnsegError(f"hnseg report: {name}, which the page carries, is not installed; {REMEDY}")
    return Path(spec.origin).parent


def _pack(source: str) -> str:
    """Gzip in base64: a third as large; and a page that unpacks it into a blob imports it from disk, which
    browsers refuse a file."""
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()
