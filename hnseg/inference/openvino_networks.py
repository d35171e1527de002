"""Members run by OpenVINO, which is what a CPU is fastest with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hnseg.errors import HnsegError
from hnseg.hardware import Precision, lacks_memory
from hnseg.inference.conversion import converted, load_openvino
from hnseg.inference.networks import Networks
from hnseg.models.member import Member

# What OpenVINO calls the arithmetic; where the processor lacks it, it computes in float32.
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# Bytes of weights that stay compiled between cases: small networks. A compiled network takes 1.7 times its
# float32 weights (PlainConvUNet 200 MiB, SegResNetDS 560, ResEnc 670), while compiling it again takes about a
# tenth of the time of one of its windows.
KEPT = 64 * 2**20


class OpenVinoNetworks(Networks):
    """Networks converted for OpenVINO, at most one of them beside those that are kept.

    A member that cannot be converted runs in PyTorch, with one line of warning.

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

    def __call__(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network, valid until the next call.

        Raises:
            HnsegError: The weights are damaged or belong to another network.
        """
        if self._current and self._current[0] == member.weights:
            return self._current[1]
        self._leave()
        network = self._compiled(member)
        if network is None:
            return super().__call__(member)
        self._current = (member.weights, network)
        return network

    def exact(self, member: Member) -> Callable[[Tensor], Tensor]:
        """The member's network in float32, compiled for this once."""
        if member.weights in self._refused:
            return super().__call__(member)
        return CompiledNetwork(self._file(member), "float32")

    def remark(self, member: Member) -> str:
        """That a member ran in PyTorch, if it did."""
        refused = member.weights in self._refused
        return f"{member.card['name']}: OpenVINO cannot run it, PyTorch did" if refused else ""

    def _compiled(self, member: Member) -> CompiledNetwork | None:
        if member.weights in self._refused:
            return None
        try:
            return self._kept.get(member.weights) or CompiledNetwork(self._file(member), self.precision)
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


class CompiledNetwork:
    """One network, compiled for this CPU.

    Args:
        file: The converted network.
        precision: Its arithmetic.
    """

    def __init__(self, file: Path, precision: Precision) -> None:
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
