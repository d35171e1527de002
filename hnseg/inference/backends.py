"""Which library runs the networks: PyTorch anywhere, OpenVINO on CPUs."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

import hnseg
from hnseg.devices import Precision, lacks_memory
from hnseg.errors import HnsegError
from hnseg.files import digest, digest_file, lock, replacing, replacing_folder
from hnseg.inference.predictor import Axes
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member
from hnseg.models.nets import stride_product


class Networks:
    """PyTorch's networks: one for all members of the same architecture.

    Building a network, drawing its first weights and laying it out takes longer than reading its weights.

    Args:
        device: Where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._networks: dict[str, nn.Module] = {}
        self._loaded: dict[str, Member] = {}

    def note(self, member: Member) -> str:
        """What the case's record says of how a member ran; mostly nothing."""
        return ""

    def exact(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network in float32 unless autocast says otherwise; as for a call."""
        return self(member)

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network with its weights, valid until the next call.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        kind = json.dumps(member.card["network"], sort_keys=True)
        if kind not in self._networks:
            network = member.network().to(self.device)
            self._networks[kind] = network.to(memory_format=torch.channels_last_3d)
        if self._loaded.get(kind) is not member:
            self._loaded.pop(kind, None)  # weights that fail to load leave a mixture
            member.load_into(self._networks[kind])
            self._loaded[kind] = member
        return self._networks[kind]


# In a converted network's folder: the graph, the digests of graph and weights, and how far bfloat16 is from
# float32, by processor.
NETWORK, HASHES, BFLOAT16 = "network.xml", "hashes.json", "bfloat16.json"


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
    # What the converted network is made of.
    versions = [hnseg.__version__, load_openvino().__version__]
    made_of = [member.sha256, member.card["network"], _input_shape(member.card), versions]
    name = f"{member.weights.parent.name}-{digest(made_of, 16)}"
    for folder in _caches(member):
        if _is_whole(folder / name):
            return folder / name / NETWORK
    model = None
    for folder in _caches(member):
        with suppress(OSError):  # read-only or full: the next one
            folder.mkdir(parents=True, exist_ok=True)
            with lock(folder, wait=True):  # one process converts, the others wait and find it
                if not _is_whole(folder / name):
                    model = model or _convert(member.loaded()[1], member.card)
                    with replacing_folder(folder / name) as new:
                        _save(model, new)
            return folder / name / NETWORK
    raise OSError("no folder to keep the converted network in")


def _input_shape(card: dict[str, Any]) -> list[int]:
    """(1, C, *patch), in the network's axes."""
    return [1, card["network"]["in_channels"], *Axes.of(card).shape_to_network(tuple(card["patch"]))]


def _convert(network: nn.Module, card: dict[str, Any]) -> Any:
    """An openvino.Model of the static shape that windows have, which shares the network's weights."""
    ov, shape = load_openvino(), _input_shape(card)
    # Tracing runs the network in float32: on few voxels, but more than one at the deepest stage.
    steps = stride_product(card["network"])
    sides = [min(side, 2 * step) for side, step in zip(shape[2:], steps, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's tracer
        return ov.convert_model(network, example_input=torch.zeros(*shape[:2], *sides), input=[shape])


def _save(model: Any, folder: Path) -> None:
    try:  # weights rounded to float16, the default, would not be the trained ones
        load_openvino().save_model(model, folder / NETWORK, compress_to_fp16=False)
    except RuntimeError as error:  # its way to say that a disk is full
        raise OSError(str(error)) from error
    hashes = {file.name: digest_file(file) for file in sorted(folder.iterdir())}
    (folder / HASHES).write_text(json.dumps(hashes))


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
        return bool(hashes) and all(
            digest_file(folder / file) == expected for file, expected in hashes.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


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


# Bytes of weights that stay compiled between cases: small networks. A compiled network takes 1.7 times its
# float32 weights (PlainConvUNet 200 MiB, SegResNetDS 560, ResEnc 670), while compiling it again takes about a
# tenth of the time of one of its windows.
KEPT = 64 * 2**20
# A window's logits in bfloat16 may differ from float32's by this share of their norm. Rounding moves those of
# conf/model's networks by 0.007 to 0.024; wrong products move them by as much as they are.
MAX_BFLOAT16_ERROR = 0.15


class OpenVinoNetworks(Networks):
    """Networks converted for OpenVINO, at most one of them beside those that are kept.

    A member that cannot be converted runs in PyTorch, with one line of warning. In bfloat16, a member's first
    window on a processor is computed in float32 too, since wrong products are known of some processors that
    announce it (OpenVINO issue 38256): where the two differ by more than rounding, it runs in float32. The
    verdict is kept beside the converted network.

    Beside PyTorch in float32, its float32 moves the softmax by less than 1e-4, its bfloat16 by 0.005 to 0.03.
    Masks of the demo's trained members then agree at a Dice of 0.999 in the same ROI. Over the whole cascade
    it is 0.997 (GTVp) and 0.999 (GTVn), over all voxels of 52 patients: in two of them the mean voxel of the
    coarse labels became its neighbour, and the fine ROI lay a coarse voxel, 6 mm there, elsewhere.

    Args:
        precision: Their arithmetic.
        kept: Bytes of weights, as stored, that stay compiled.
    """

    def __init__(self, precision: Precision, *, kept: int = KEPT) -> None:
        super().__init__(torch.device("cpu"))
        self.precision, self.room = precision, kept
        self._kept: dict[Path, CompiledNetwork] = {}
        self._current: tuple[Path, CompiledNetwork] | None = None
        self._refused: set[Path] = set()
        self._files: dict[Path, Path] = {}
        self._errors: dict[Path, float | None] = {}

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network, valid until the next call.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        if self._current is None or self._current[0] != member.weights:
            self._leave()
            network = self._compiled(member)
            if network is None:
                return super().__call__(member)
            self._current = member.weights, network
        network = self._current[1]
        unchecked = network.precision == "bfloat16" and self._bfloat16_error(member) is None
        return (lambda image: self._checked(member, image)) if unchecked else network

    def exact(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network in float32, compiled for this once."""
        if member.weights in self._refused:
            return super().__call__(member)
        return CompiledNetwork(self._file(member), "float32")

    def note(self, member: Member) -> str:
        """That a member ran in PyTorch or in another arithmetic, if it did."""
        name = member.card["name"]
        if member.weights in self._refused:
            return f"{name}: OpenVINO cannot run it, PyTorch did"
        if self.precision == "bfloat16" and not self._trusts(member):
            return f"{name}: bfloat16 is wrong on this processor, float32 was taken"
        return ""

    def _compiled(self, member: Member) -> CompiledNetwork | None:
        if member.weights in self._refused:
            return None
        try:
            file = self._file(member)
            precision = self.precision
            if precision == "bfloat16" and not self._trusts(member):
                precision = "float32"
            return self._kept.get(member.weights) or CompiledNetwork(file, precision)
        except HnsegError:
            raise
        except Exception as error:
            if lacks_memory(error):  # in PyTorch it would take more
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            message = "%s: OpenVINO cannot run it (%s); it runs in PyTorch"
            logging.getLogger(__name__).warning(message, member.card["name"], reason)
            self._refused.add(member.weights)
            return None

    def _checked(self, member: Member, image: Tensor) -> Tensor:
        """The logits of a window, in bfloat16 if the member's first one is right in it."""
        assert self._current is not None
        network = self._current[1]
        if network.precision != "bfloat16" or self._bfloat16_error(member) is not None:
            return network(image)
        exact = CompiledNetwork(self._file(member), "float32")
        logits, expected = network(image), exact(image)
        self._keep_error(member, relative_error(logits, expected))
        if self._trusts(member):
            return logits
        self._current = member.weights, exact
        return expected

    def _trusts(self, member: Member) -> bool:
        """Whether bfloat16 is right here, or has not been tried."""
        error = self._bfloat16_error(member)
        return error is None or error <= MAX_BFLOAT16_ERROR  # NaN is not

    def _bfloat16_error(self, member: Member) -> float | None:
        """How far bfloat16 was from float32 on this processor; None before it was tried."""
        if member.weights not in self._errors:
            errors = _read_errors(self._file(member).with_name(BFLOAT16))
            self._errors[member.weights] = errors.get(_processor())
        return self._errors[member.weights]

    def _keep_error(self, member: Member, error: float) -> None:
        self._errors[member.weights] = error
        path = self._file(member).with_name(BFLOAT16)
        with suppress(HnsegError), replacing(path) as temporary:  # read-only: the next process tries again
            temporary.write_text(json.dumps(_read_errors(path) | {_processor(): error}))

    def _file(self, member: Member) -> Path:
        """Its converted network, whose hashes are compared once a process: they are of gigabytes."""
        if member.weights not in self._files:
            self._files[member.weights] = converted(member)
        return self._files[member.weights]

    def _leave(self) -> None:
        """Keeps the present network without its activations, or lets it go."""
        if self._current is None:
            return
        weights, network = self._current
        self._current = None
        network.rest()
        size = weights.stat().st_size
        if weights not in self._kept and size <= self.room:
            self.room -= size
            self._kept[weights] = network


def relative_error(logits: Tensor, expected: Tensor) -> float:
    """Norm of the difference as a share of the expected logits' norm, after their mean over the classes.

    Args:
        logits: (1, K, z, y, x); a number common to a voxel's logits changes no probability.
        expected: Likewise.
    """
    ours, theirs = (one - one.mean(1, keepdim=True) for one in (logits, expected))
    return float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(theirs.dtype).tiny))


@cache
def _processor() -> str:
    return str(load_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME"))


def _read_errors(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


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
    if notes := [note for member in members if (note := networks.note(member))]:
        raise HnsegError(f"{path}: whole, but {'; '.join(notes)}; infer.py will do the same")


def make_networks(backend: Backend, device: torch.device, precision: Precision) -> Networks:
    """What runs the members of a bundle.

    Args:
        backend: The library.
        device: Where they run.
        precision: Their arithmetic.
    """
    return OpenVinoNetworks(precision) if backend == "openvino" else Networks(device)
