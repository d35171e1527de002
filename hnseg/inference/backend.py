"""Which library runs the networks: PyTorch anywhere, OpenVINO on CPUs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from hnseg.errors import HnsegError
from hnseg.hardware import Precision
from hnseg.inference.networks import Networks
from hnseg.inference.openvino_networks import OpenVinoNetworks
from hnseg.inference.torch_compile import TorchCompileNetworks
from hnseg.models.bundle import Bundle

Backend = Literal["torch", "openvino"]


def pick_backend(device: torch.device, wanted: str = "auto") -> Backend:
    """`auto` is OpenVINO on a CPU where it is installed, else PyTorch.

    Raises:
        HnsegError: Neither auto, torch nor openvino, or openvino on a GPU or where it is not installed.
    """
    if wanted not in ("auto", "torch", "openvino"):
        raise HnsegError(f"backend={wanted} is unknown; choose auto, torch or openvino")
    if wanted == "openvino" and device.type != "cpu":
        raise HnsegError("backend=openvino runs on the CPU only; set trainer.device=cpu, or backend=auto")
    if wanted == "openvino":
        require_openvino("backend=openvino", "set backend=torch")
        return "openvino"
    usable = device.type == "cpu" and find_spec("openvino") is not None
    return "openvino" if usable and wanted == "auto" else "torch"


def require_openvino(asked: str, remedy: str) -> None:
    """Refuses what only OpenVINO can do, where it is not installed.

    Args:
        asked: By which key or option.
        remedy: How to do without.

    Raises:
        HnsegError: It is not installed.
    """
    if find_spec("openvino") is None:
        raise HnsegError(f"{asked}: OpenVINO is not installed; pip install 'hnseg[openvino]', or {remedy}")


def convert_bundle(path: Path) -> None:
    """Converts the members of a bundle for OpenVINO, so that no case waits for it.

    Raises:
        HnsegError: Not a bundle, damaged, or with members that OpenVINO cannot run.
    """
    networks, members = OpenVinoNetworks("float32", kept=0), Bundle.load(path).members
    for member in members:
        networks(member)
    if remarks := [remark for member in members if (remark := networks.remark(member))]:
        raise HnsegError(f"{path}: whole, but {'; '.join(remarks)}; infer.py will do the same")


def make_networks(
    backend: Backend, device: torch.device, precision: Precision, *, compiled: bool = False
) -> Networks:
    """Where the members of a bundle find their networks.

    Args:
        backend: The library that runs them.
        device: Where they run.
        precision: Their arithmetic.
        compiled: Let `torch.compile` translate them.

    Raises:
        HnsegError: OpenVINO, which compiles in its own way, is asked for torch.compile.
    """
    if backend == "openvino":
        if compiled:
            raise HnsegError("compile=true is PyTorch's, not OpenVINO's; set backend=torch, or compile=false")
        return OpenVinoNetworks(precision)
    return TorchCompileNetworks(device) if compiled else Networks(device)
