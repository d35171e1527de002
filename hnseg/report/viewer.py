"""NiiVue, the viewer of the page, as the optional dependency ipyniivue brings it."""

import base64
import gzip
import re
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from hnseg.errors import HnsegError

REMEDY = "install the extra: pip install -e '.[report]'"
# ipyniivue's bundle is a module that exports its widget alone. The class it makes its canvas with stands
# after this message, under whatever name the minifier gave it.
_CLASS = re.compile(r"Creating new Niivue instance.{0,200}?=\s*new ([\w$]+)\(", re.DOTALL)


def niivue_module() -> str:
    """The bundle as a module that exports `Niivue`, gzip in base64.

    Compressed it is half as large, and a page that unpacks it into a blob imports it from disk, which
    browsers refuse a file.

    Raises:
        HnsegError: ipyniivue is not installed, or its bundle is built in another way.
    """
    spec = find_spec("ipyniivue")
    if spec is None or spec.origin is None:
        raise HnsegError(f"hnseg report: ipyniivue, which holds the viewer, is not installed; {REMEDY}")
    bundle = Path(spec.origin).parent / "static" / "widget.js"
    try:
        source = bundle.read_text(encoding="utf-8")
    except OSError as error:
        raise HnsegError(f"{bundle}: cannot be read ({error.strerror}); {REMEDY}") from error
    name = _CLASS.search(source)
    if name is None:
        raise HnsegError(f"{bundle}: holds no Niivue class that hnseg knows; {REMEDY} -c constraints.txt")
    module = f"{source}\nexport {{ {name[1]} as Niivue }};\n"
    return base64.b64encode(gzip.compress(module.encode(), mtime=0)).decode()


def niivue_licence() -> str:
    """The licence that goes with the bundle, which every copy must carry."""
    return distribution("ipyniivue").read_text("licenses/LICENSE") or "BSD-2-Clause"
