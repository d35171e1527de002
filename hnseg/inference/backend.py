"""Which library runs the networks: PyTorch anywhere, OpenVINO on CPUs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch

from hnseg.errors import HnsegError
from hnseg.hardware import Precision
from hnseg.inference.networks import Networks
from hnseg.inference.openvino_networks import OpenVinoNetworks

Backend = Literal["torch", "openvino"]


def pick_backend(device: torch.device, wanted: str = "auto") -> Backend:
    """`auto` is OpenVINO on a CPU where it is installed, else PyTorch.

    Raises:
        HnsegError: Neither auto, torch nor openvino, or openvino on a GPU or where it is not installed.
    """
    if wanted not in ("auto", "torch", "openvino"):
        raise HnsegError(f"backend={wanted} is unknown; choose auto, torch or openvino")
    installed = find_spec("openvino") is not None
    if wanted == "openvino" and device.type != "cpu":
        raise HnsegError("backend=openvino runs on the CPU only; set trainer.device=cpu, or backend=auto")
    if wanted == "openvino" and not installed:
        raise HnsegError(
            "backend=openvino: OpenVINO is not installed; pip install 'hnseg[openvino]', or set backend=torch"
        )
    return "openvino" if installed and device.type == "cpu" and wanted != "torch" else "torch"


def make_networks(backend: Backend, device: torch.device, precision: Precision) -> Networks:
    """Where the members of a bundle find their networks.

    Args:
        backend: The library that runs them.
        device: Where they run.
        precision: Their arithmetic.
    """
    return OpenVinoNetworks(precision) if backend == "openvino" else Networks(device)
