"""Networks as OpenVINO reads them: converted once, found again by what they were made of.

    CACHE/MEMBER-KEY/network.xml      the graph, for the member's patch
    CACHE/MEMBER-KEY/network.bin      the weights, float32
    CACHE/MEMBER-KEY/hashes.json      SHA-256 of both

CACHE is the folder `cache` of the bundle, or the user's own where the bundle cannot be written. Nothing in
it is code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import hnseg
from hnseg.files import alone_in
from hnseg.inference.axes import Axes
from hnseg.models.bundle import digest
from hnseg.models.member import Member
from hnseg.models.sides import divisor

NETWORK, HASHES = "network.xml", "hashes.json"
_CONVERTING = ".converting-"  # folders of this name become networks, or are removed


def load_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which reports every import and conversion to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def converted(member: Member) -> Path:
    """The member's network in OpenVINO's format, float32; converts it unless a cache has it.

    Args:
        member: Of a bundle.

    Returns:
        The graph's file. Its input is (1, C, *patch) and its output (1, K, *patch), in the network's axes.

    Raises:
        HnsegError: The weights are damaged or belong to another network.
        Exception: Whatever PyTorch or OpenVINO raise where they cannot convert it.
    """
    name = f"{member.weights.parent.name}-{_key(member)}"
    for folder in _caches(member):
        if _is_whole(folder / name):
            return folder / name / NETWORK
    model = None
    for folder in _caches(member):
        with suppress(OSError):  # read-only or full: the next one
            folder.mkdir(parents=True, exist_ok=True)
            with alone_in(folder) as alone:  # one process converts, the others wait and find it
                for leftover in folder.glob(f"{_CONVERTING}*") if alone else ():  # of one that was killed
                    shutil.rmtree(leftover, ignore_errors=True)
                if not _is_whole(folder / name):
                    model = model or _convert(member.loaded()[1], member.card)
                    _write(model, folder / name)
            return folder / name / NETWORK
    raise OSError("no folder to keep the converted network in")


def _key(member: Member) -> str:
    """Changes with whatever the converted network is made of."""
    versions = [hnseg.__version__, load_openvino().__version__]
    parts = [member.sha256, member.card["network"], _input_shape(member.card), versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _input_shape(card: dict[str, Any]) -> list[int]:
    """(1, C, *patch), in the network's axes."""
    return [1, card["network"]["in_channels"], *Axes.of(card).shape_to_network(tuple(card["patch"]))]


def _convert(network: nn.Module, card: dict[str, Any]) -> Any:
    """An openvino.Model of the static shape that windows have, which shares the network's weights."""
    ov, shape = load_openvino(), _input_shape(card)
    # Tracing runs the network in float32: on few voxels, but more than one at the deepest stage.
    steps = divisor({"architecture": card["network"]["architecture"], "settings": card["network"]})
    sides = [min(side, 2 * step) for side, step in zip(shape[2:], steps, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's tracer
        return ov.convert_model(network, example_input=torch.zeros(*shape[:2], *sides), input=[shape])


def _caches(member: Member) -> Iterator[Path]:
    """Where converted networks are kept, the best place first."""
    yield member.weights.parents[1] / "cache"
    with suppress(RuntimeError):  # a container's user may have no home
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        yield home / "hnseg" / "converted"
    yield Path(_of_this_process().name)


@cache
def _of_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hnseg-converted-")


def _is_whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / HASHES).read_text())
        return bool(hashes) and all(digest(folder / file) == expected for file, expected in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write(model: Any, folder: Path) -> None:
    """Puts a converted network in its place, whole; a damaged one there is replaced."""
    with tempfile.TemporaryDirectory(prefix=_CONVERTING, dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        # Weights rounded to float16, its default, would not be the trained ones.
        try:
            load_openvino().save_model(model, new / NETWORK, compress_to_fp16=False)
        except RuntimeError as error:  # its way to say that a disk is full
            raise OSError(str(error)) from error
        hashes = {file.name: digest(file) for file in sorted(new.iterdir())}
        (new / HASHES).write_text(json.dumps(hashes))
        if folder.exists():
            folder.replace(Path(temporary, "old"))
        new.replace(folder)
