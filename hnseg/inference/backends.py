"""Which library runs the networks: PyTorch anywhere, OpenVINO on CPUs."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import hnseg
from hnseg.card import Card
from hnseg.devices import Precision, lacks_memory, pick_precision
from hnseg.errors import HnsegError
from hnseg.files import digest, lock, replacing, replacing_folder
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member
from hnseg.models.nets import stride_product


class Networks:
    """PyTorch's networks: one for all members of the same architecture.

    Building a network, drawing its first weights and laying it out takes longer than reading its weights.

    Args:
        device: Where they run.
        precision: Their arithmetic.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device, self.precision = device, precision
        self._networks: dict[str, nn.Module] = {}
        self._loaded: dict[str, Member] = {}

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network with its weights, valid until the next call."""
        return self.in_pytorch(member)

    def in_pytorch(self, member: Member) -> nn.Module:
        """The member's network with its weights, in float32 outside autocast; valid until the next call.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        kind = json.dumps(member.card.network, sort_keys=True)
        if kind not in self._networks:
            network = member.network().to(self.device)
            self._networks[kind] = network.to(memory_format=torch.channels_last_3d)
        if self._loaded.get(kind) is not member:
            self._loaded.pop(kind, None)  # weights that fail to load leave a mixture
            member.load_into(self._networks[kind])
            self._loaded[kind] = member
        return self._networks[kind]

    def note(self, member: Member) -> str:
        """What the case's record says of how a member ran; mostly nothing."""
        return ""


def make_networks(device: torch.device, backend: str = "auto", precision: str = "auto") -> Networks:
    """What runs the members of a bundle on a device.

    Args:
        device: Where they run.
        backend: torch, openvino, or auto: OpenVINO on a CPU where it is installed, else PyTorch.
        precision: Their arithmetic, or auto: see `pick_precision`.

    Raises:
        HnsegError: openvino on a GPU or where it is not installed.
    """
    if backend == "openvino":
        if device.type != "cpu":
            raise HnsegError("backend=openvino runs on the CPU only; set trainer.device=cpu or backend=auto")
        require_openvino("backend=openvino", "set backend=torch")
    picked = pick_precision(device, precision)
    if backend != "torch" and device.type == "cpu" and find_spec("openvino") is not None:
        return OpenVinoNetworks(picked)
    return Networks(device, picked)


def require_openvino(asked: str, remedy: str) -> None:
    """Refuses a key or option that needs OpenVINO where it is not installed."""
    if find_spec("openvino") is None:
        raise HnsegError(f"{asked}: OpenVINO is not installed; pip install 'hnseg[openvino]', or {remedy}")


def load_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which reports every import and conversion to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


# In a converted network's folder: the graph, and how far bfloat16 is from float32, by processor.
NETWORK, BFLOAT16 = "network.xml", "bfloat16.json"


def converted(member: Member) -> Path:
    """The member's network in OpenVINO's format, float32; converts it unless a cache has it.

    The caches are the bundle's folder `cache`, and where that is read-only the user's.

    Args:
        member: Of a bundle.

    Returns:
        The graph's file. Its input is (1, C, *patch) and its output (1, K, *patch), in the network's axes.

    Raises:
        HnsegError: The weights are damaged or belong to another network.
        Exception: Whatever PyTorch or OpenVINO raise where they cannot convert it.
    """
    ov = load_openvino()
    versions = [hnseg.__version__, ov.__version__]
    made_of = [member.sha256, member.card.network, _input_shape(member.card), versions]
    name = f"{member.weights.parent.name}-{digest(made_of, 16)}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hnseg" / "converted"
    folders = [member.weights.parents[1] / "cache" / name, home / name]
    for folder in folders:
        if (folder / NETWORK).exists():
            return folder / NETWORK
    for folder in folders:
        with suppress(OSError):  # read-only: the next one
            folder.parent.mkdir(parents=True, exist_ok=True)
            with lock(folder.parent, wait=True):  # one process converts, the others wait and find it
                if not (folder / NETWORK).exists():
                    with replacing_folder(folder) as new:
                        # Weights rounded to float16, the default, would not be the trained ones.
                        ov.save_model(_convert(member), new / NETWORK, compress_to_fp16=False)
                        for path in new.iterdir():
                            with path.open("rb") as file:
                                os.fsync(file.fileno())
            return folder / NETWORK
    raise OSError(f"neither {folders[0].parent} nor {home} can be written")


def _input_shape(card: Card) -> list[int]:
    """(1, C, *patch), in the network's axes."""
    return [1, card.network["in_channels"], *card.axes.shape_to_network(card.patch)]


def _convert(member: Member) -> Any:
    """An openvino.Model of the static shape that windows have."""
    card, network = member.loaded()
    shape = _input_shape(card)
    # Tracing runs the network in float32: on few voxels, but more than one at the deepest stage.
    steps = stride_product(card.network)
    sides = [min(side, 2 * step) for side, step in zip(shape[2:], steps, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's tracer
        return load_openvino().convert_model(
            network, example_input=torch.zeros(*shape[:2], *sides), input=[shape]
        )


# What OpenVINO calls the arithmetic; where the processor lacks it, it computes in float32.
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class CompiledNetwork:
    """One network, compiled for this CPU.

    Args:
        file: The converted network.
        precision: Its arithmetic.
    """

    def __init__(self, file: Path, precision: Precision) -> None:
        self.precision = precision
        properties = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled = load_openvino().Core().compile_model(file, "CPU", properties)
        self._request: Any = None

    def __call__(self, image: Tensor) -> Tensor:
        """(1, C, *patch) → (1, K, *patch), float32."""
        self._request = self._request or self._compiled.create_infer_request()
        (logits,) = self._request.infer([image.contiguous().numpy()], share_inputs=True).values()
        return torch.from_numpy(logits)

    def rest(self) -> None:
        """Frees what only a running network needs."""
        self._request = None
        self._compiled.release_memory()


# Bytes of weights up to which a network stays compiled between cases. Compiled, it takes 1.7 times its
# float32 weights (PlainConvUNet 200 MiB, SegResNetDS 560, ResEnc 670); compiling takes a tenth of a window.
KEPT = 32 * 2**20
# A window's logits in bfloat16 may differ from float32's by this share of their norm. Rounding moves those of
# conf/model's networks by 0.007 to 0.024; wrong products move them by as much as they are.
MAX_BFLOAT16_ERROR = 0.15


class OpenVinoNetworks(Networks):
    """Networks converted for OpenVINO: the present member's, and small ones (`KEPT`).

    A member that cannot be converted runs in PyTorch, with one line of warning. In bfloat16, a member's first
    window on a processor is computed in float32 too, since wrong products are known of some processors that
    announce it (OpenVINO issue 38256): where the two differ by more than rounding, it runs in float32. The
    verdict is kept beside the converted network.
    """

    def __init__(self, precision: Precision) -> None:
        super().__init__(torch.device("cpu"), precision)
        self._compiled: dict[Path, CompiledNetwork] = {}
        self._refused: set[Path] = set()
        self._errors: dict[Path, float | None] = {}  # of bfloat16

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """As of `Networks`; in PyTorch where OpenVINO cannot run it."""
        for weights, network in list(self._compiled.items()):
            if weights != member.weights:
                network.rest()
                if weights.stat().st_size > KEPT:
                    del self._compiled[weights]
        if member.weights not in self._compiled and member.weights not in self._refused:
            self._compile(member)
        if member.weights in self._refused:
            return self.in_pytorch(member)
        return lambda image: self._run(member, image)

    def note(self, member: Member) -> str:
        """That a member ran in PyTorch or in another arithmetic, if it did."""
        name = member.card.name
        if member.weights in self._refused:
            return f"{name}: OpenVINO cannot run it, PyTorch did"
        if self.precision == "bfloat16" and self._is_wrong(member):
            return f"{name}: bfloat16 is wrong on this processor, float32 was taken"
        return ""

    def _compile(self, member: Member) -> None:
        try:
            file = converted(member)
            wrong = self.precision == "bfloat16" and self._is_wrong(member)
            self._compiled[member.weights] = CompiledNetwork(file, "float32" if wrong else self.precision)
        except HnsegError:
            raise
        except Exception as error:
            if lacks_memory(error):  # in PyTorch it would take more
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = "%s: OpenVINO cannot run it (%s); it runs in PyTorch"
            logging.getLogger(__name__).warning(message, member.card.name, reason)
            self._refused.add(member.weights)

    def _run(self, member: Member, image: Tensor) -> Tensor:
        """The logits of a window; of the member's first in bfloat16, those of float32 if it is wrong."""
        network = self._compiled[member.weights]
        logits = network(image)
        if network.precision != "bfloat16" or self._bfloat16_error(member) is not None:
            return logits
        exact = CompiledNetwork(converted(member), "float32")
        expected = exact(image)
        self._keep_error(member, relative_error(logits, expected))
        if not self._is_wrong(member):
            return logits
        self._compiled[member.weights] = exact
        return expected

    def _is_wrong(self, member: Member) -> bool:
        error = self._bfloat16_error(member)
        return error is not None and not error <= MAX_BFLOAT16_ERROR  # NaN is wrong

    def _bfloat16_error(self, member: Member) -> float | None:
        """How far bfloat16 was from float32 on this processor; None before it was tried."""
        if member.weights not in self._errors:
            known = _read_errors(converted(member).with_name(BFLOAT16))
            self._errors[member.weights] = known.get(_processor())
        return self._errors[member.weights]

    def _keep_error(self, member: Member, error: float) -> None:
        self._errors[member.weights] = error
        path = converted(member).with_name(BFLOAT16)
        with suppress(HnsegError), replacing(path) as temporary:  # read-only: the next process tries again
            temporary.write_text(json.dumps(_read_errors(path) | {_processor(): error}))


def relative_error(logits: Tensor, expected: Tensor) -> float:
    """Norm of the difference as a share of the expected logits' norm, after their mean over the classes.

    Args:
        logits: (1, K, z, y, x); a number common to a voxel's logits changes no probability.
        expected: Likewise.
    """
    ours, theirs = (each - each.mean(1, keepdim=True) for each in (logits, expected))
    return float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(theirs.dtype).tiny))


@cache
def _processor() -> str:
    return str(load_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME"))


def _read_errors(path: Path) -> dict[str, float]:
    return json.loads(path.read_bytes()) if path.exists() else {}


def convert_bundle(path: Path) -> None:
    """Converts the members of a bundle for OpenVINO, so that no case waits for it.

    Raises:
        HnsegError: Not a bundle, damaged, or with members that OpenVINO cannot run.
    """
    networks, members = OpenVinoNetworks("float32"), Bundle.load(path).members
    for member in members:
        networks(member)
    if notes := [note for member in members if (note := networks.note(member))]:
        raise HnsegError(f"{path}: whole, but {'; '.join(notes)}; hnseg infer will do the same")
