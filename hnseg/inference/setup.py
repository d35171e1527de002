"""What a command asks of a cascade, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hnseg.hardware import pick_precision
from hnseg.inference.backend import make_networks, pick_backend
from hnseg.inference.cascade import Cascade
from hnseg.models.bundle import Bundle


@dataclass(frozen=True)
class Setup:
    """Which members of a bundle run, how, and by which rules; plain values, which any process can load.

    Args:
        bundle: Its folder.
        arm: Name of the ensemble arm.
        kinds: Its members, as `Bundle.arm` takes them; None is all.
        rules: Decision rules in the place of the bundle's.
        windows: `trained` shows a volume as members were trained, `whole` in one piece.
        backend: auto, torch or openvino.
        compiled: Let `torch.compile` translate the networks.
        precision: auto, or the networks' arithmetic.
        threads: Of the CPU; None leaves them.
        cascade: Further settings of `Cascade`, by name.
    """

    bundle: Path
    arm: str = "all"
    kinds: Sequence[Mapping[str, Any]] | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    windows: str = "trained"
    backend: str = "auto"
    compiled: bool = False
    precision: str = "auto"
    threads: int | None = None
    cascade: Mapping[str, Any] = field(default_factory=dict)

    def load(self, devices: Sequence[torch.device]) -> list[Cascade]:
        """One cascade on each device, with networks of its own.

        Raises:
            HnsegError: As `Bundle.load`, `Bundle.arm`, `pick_backend`, `pick_precision` and `Cascade`.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        bundle = Bundle.load(self.bundle).arm(self.arm, self.kinds)
        bundle = replace(bundle, decision=bundle.decision | dict(self.rules))
        bundle = bundle.whole() if self.windows == "whole" else bundle
        return [self._cascade(bundle, device) for device in devices]

    def _cascade(self, bundle: Bundle, device: torch.device) -> Cascade:
        precision = pick_precision(device, self.precision)
        backend = pick_backend(device, self.backend)
        networks = make_networks(backend, device, precision, compiled=self.compiled)
        return Cascade(bundle, device, precision, networks=networks, **self.cascade)
